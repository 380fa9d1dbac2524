"""Primitives, OPAL (Ajay et al. 2021, arXiv 2010.13611): behaviours of a few steps' length, learnt from data.

A variational autoencoder puts every window of `c` steps into a latent vector `z`, and a policy that is given `z` plays
the window back. Then `z` is an action: a learner that chooses one every `c` steps has a horizon `c` times shorter, and
whatever it chooses is a behaviour that the data show.

```python
primitives = Primitives.create(Spaces.of(env), PrimitivesConfig(), key)
windows = primitives.windows(dataset)
primitives = train.offline(primitives, windows, 20_000).agent
primitives = train.offline(primitives.freeze(dataset, key), windows, 5_000).agent  # finetunes the policy
agent = CQL.create(primitives.latent_spaces, CQLConfig(discount=0.99**10), key)
policy = train.offline(primitives.wrap(agent), primitives.relabel(dataset, 0.99), 30_000).agent
```
"""

import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.data import config as configuration
from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.distributions import Normal
from offroad.nets.encoder import Flat
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig
from offroad.skills.networks import Conditional, Flattened, Recurrent
from offroad.skills.policy import PrimitivePolicy
from offroad.skills.windows import Window, Windows

FORMAT = 1
QUANTILE = 0.999
"""The share of latents, in each dimension, that is inside the space of latent actions; the rest is clipped to it."""

CHUNK = 1024
"""Windows that are encoded in one compiled call."""


@dataclass(frozen=True)
class PrimitivesConfig:
    """Sizes, rate and weight are those of an open re-implementation (OPAL-PyTorch), which has batches of 50 and four
    layers of a bidirectional GRU as posterior.
    """

    learning_rate: float = 1e-3
    batch: int = 256  # windows per update
    length: int = 10  # c: steps of a primitive
    latents: int = 8  # dimensions of z
    kl_weight: float = 0.1  # beta: of the KL divergence, a sum over z, beside the likelihood, a sum over the window
    hidden: tuple[int, ...] = (200, 200)
    # q(z | window): a network on the window's numbers side by side, or one bidirectional GRU over its steps.
    posterior: Literal["mlp", "gru"] = "mlp"
    finetune_with: Literal["sample", "mean"] = "sample"  # which z of a window the frozen posterior gives the policy
    gradient_norm: float = 10.0  # longer gradients are cut to it
    normalise_observation: bool = True  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class Primitives(eqx.Module):
    """The autoencoder: posterior q(z | window), prior rho(z | first observation), policy pi(a | s, z).

    A learner: `train.offline` trains it on `windows(dataset)`. `freeze` ends that: from then on latents have a range,
    latent actions are vectors in [-1, 1] that stand for it, and updates finetune the policy alone.
    """

    posterior: Flattened | Recurrent
    prior: Conditional
    policy: Conditional
    reach: Float[Array, " z"]  # of a latent action of 1
    optimiser_state: PyTree[Array]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: PrimitivesConfig = eqx.field(static=True)
    frozen: bool = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: PrimitivesConfig, key: Key[Array, ""]) -> "Primitives":
        """Raises `OffroadError` for other than Box actions and for settings that make no sense."""
        actions = box_actions(spaces, "a set of primitives").shape[0]
        if min(config.length, config.latents) < 1:
            raise OffroadError(
                f"primitives have length {config.length} and {config.latents} latents, expected at least 1 of each"
            )
        posterior_key, prior_key, policy_key = jax.random.split(key, 3)

        def encoder(key: Key[Array, ""]) -> Any:
            return config.encoder.build(spaces.observation, key)

        def conditional(extra: int, size: int, key: Key[Array, ""]) -> Conditional:
            return Conditional(encoder(key), extra, config.hidden, size, key)

        kind = Recurrent if config.posterior == "gru" else Flattened
        posterior = kind(encoder(posterior_key), actions, config.length, config.hidden, config.latents, posterior_key)
        prior = conditional(0, config.latents, prior_key)
        policy = conditional(config.latents, actions, policy_key)
        return cls(
            posterior=posterior,
            prior=prior,
            policy=policy,
            reach=jnp.ones(config.latents),
            optimiser_state=_optimiser(config).init((posterior, prior, policy)),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
            frozen=False,
        )

    def windows(self, dataset: Dataset) -> Windows:
        """The data set's windows of this length."""
        dataset.check(self.spaces)
        return Windows(dataset, self.config.length)

    def encode(self, window: Window) -> Normal:
        """q(z | window), for a batch of windows."""
        observation = self._normalise(window.observation)
        unit = ActionScale(self._actions).to_unit(window.action)
        return self.posterior(observation, unit, window.valid)

    def prior_of(self, window: Window) -> Normal:
        """rho(z | s_0)."""
        return self.prior(self._normalise(jax.tree.map(lambda x: x[:, 0], window.observation)))

    def likelihood(self, window: Window, z: Float[Array, "batch z"]) -> Float[Array, " batch"]:
        """log pi(a_0 ... | s_0 ..., z): a sum over steps and over the dimensions of actions in [-1, 1]."""
        steps = jnp.broadcast_to(z[:, None], (*window.valid.shape, z.shape[-1]))
        policy = self.policy(self._normalise(window.observation), steps)
        unit = ActionScale(self._actions).to_unit(window.action)
        return jnp.sum(jnp.where(window.valid, policy.log_prob(unit), 0), axis=-1)

    def update(self, batch: Window, key: Key[Array, ""]) -> tuple["Primitives", dict[str, Float[Array, ""]]]:
        """One step up the evidence lower bound; once frozen, one step up the policy's likelihood given the latents."""
        config = self.config
        if batch.action.shape[-2] != config.length:
            raise OffroadError(
                f"these windows have {batch.action.shape[-2]} steps, the primitives {config.length}; "
                "take primitives.windows(dataset)"
            )
        batch = jax.tree.map(jnp.asarray, batch)
        if self.frozen:
            return self._finetune(batch, key)

        def loss(learnt: Any) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            """Minus the paper's objective, with beta as the multiplier of its constraint on the KL divergence."""
            new = replace(self, posterior=learnt[0], prior=learnt[1], policy=learnt[2])
            posterior = new.encode(batch)
            likelihood = jnp.mean(new.likelihood(batch, posterior.sample(key)))
            divergence = jnp.mean(kl(posterior, new.prior_of(batch)))
            return config.kl_weight * divergence - likelihood, (likelihood, divergence)

        learnt = (self.posterior, self.prior, self.policy)
        (value, (likelihood, divergence)), gradient = jax.value_and_grad(loss, has_aux=True)(learnt)
        (posterior, prior, policy), state = self._descend(learnt, gradient)
        new = replace(self, posterior=posterior, prior=prior, policy=policy, optimiser_state=state)
        return new, {"loss": value, "likelihood": likelihood, "kl": divergence}

    def _finetune(self, batch: Window, key: Key[Array, ""]) -> tuple["Primitives", dict[str, Float[Array, ""]]]:
        """Behaviour cloning of (s_t, a_t, z)."""
        z = self._latent(batch, key if self.config.finetune_with == "sample" else None)

        def loss(policy: Conditional) -> Float[Array, ""]:
            return -jnp.mean(replace(self, policy=policy).likelihood(batch, z))

        value, gradient = jax.value_and_grad(loss)(self.policy)
        policy, state = self._descend(self.policy, gradient)
        return replace(self, policy=policy, optimiser_state=state), {"loss": value, "likelihood": -value}

    def freeze(self, dataset: Dataset, key: Key[Array, ""]) -> "Primitives":
        """The primitives with a frozen posterior: from `dataset` they measure how far latents reach. Updates then
        finetune the policy, so that it fits what `relabel` gives.
        """
        free, windows = replace(self, reach=jnp.full(self.config.latents, jnp.inf)), self.windows(dataset)
        z = free._encoded(windows, windows.rows, key)
        return self._frozen(jnp.asarray(np.quantile(np.abs(z), QUANTILE, axis=0), jnp.float32))

    def _frozen(self, reach: Float[Array, " z"]) -> "Primitives":
        state = _optimiser(self.config).init(self.policy)  # pyright: ignore[reportArgumentType]
        return replace(self, reach=reach, optimiser_state=state, frozen=True)

    @property
    def latent_spaces(self) -> Spaces:
        """What a learner on top acts in: the observations, and latent actions in [-1, 1]."""
        latent = gym_spaces.Box(-1, 1, (self.config.latents,), np.float32)
        return Spaces(self.spaces.observation, latent, self.spaces.num_envs)

    def relabel(self, dataset: Dataset, discount: float | int, key: Key[Array, ""] | None = None) -> Dataset:
        """The data as a learner on top sees them: one step is one window, its action the window's latent (the
        posterior's mean; with `key` a sample), its reward the window's discounted sum.

        Learn from it with a discount of `discount ** length`. Every episode becomes `length` shorter ones, which begin
        in its first, second, ... step. `info["row"]` is the row of `dataset` in which a window begins. Raises
        `OffroadError` before `freeze`.
        """
        self._must_be_frozen()
        windows = self.windows(dataset)
        rows, ends = windows.chains()
        last = windows.last(rows)
        over = dataset.terminated[last]
        return Dataset(
            observations=jax.tree.map(lambda x: np.asarray(x[rows]), dataset.observations),
            actions=self._encoded(windows, rows, key) / np.asarray(self.reach),
            rewards=windows.returns(rows, discount),
            terminated=over,
            truncated=ends & ~over,
            final_observations=dataset.transitions(last[ends]).next_observation,
            info={"row": rows},
        )

    def act(self, observation: PyTree[Any], latent: Float[Array, "batch z"]) -> Float[Array, "batch action"]:
        """The most likely actions, in the environment's units, of the primitives that latent actions stand for."""
        policy = self.policy(self._normalise(observation), self.reach * jnp.clip(latent, -1, 1))
        return ActionScale(self._actions).to_env(policy.mode())

    def wrap(self, agent: Agent) -> PrimitivePolicy:
        """`agent`, which chooses latent actions, as an agent that acts in the environment itself and whose updates take
        relabelled data. Raises `OffroadError` before `freeze` and for an agent of other spaces than `latent_spaces`.
        """
        self._must_be_frozen()
        return PrimitivePolicy.of(self, agent)

    def save(self, path: str | Path) -> None:
        """Writes everything to a NumPy archive of plain arrays, to go on training from it, too."""
        about = {"format": FORMAT, "spaces": self.spaces.to_json(), "frozen": self.frozen}
        about["config"] = configuration.to_json(self.config)
        with open(path, "wb") as file:  # given a name, NumPy would append .npz to others
            np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **_named(self))

    @classmethod
    def load(cls, path: str | Path) -> "Primitives":
        """The inverse of `save`. Raises `OffroadError` for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise OffroadError(
                f"primitives {str(path)!r} cannot be read ({error}); expected a file written by Primitives.save"
            ) from error
        spaces, config = Spaces.from_json(about["spaces"]), configuration.from_json(PrimitivesConfig, about["config"])

        def template(key: Key[Array, ""]) -> Primitives:
            new = cls.create(spaces, config, key)
            return new._frozen(new.reach) if about["frozen"] else new

        like = jax.eval_shape(template, jax.random.key(0))
        wanted, found = ({k: (x.shape, str(x.dtype)) for k, x in each.items()} for each in (_named(like), arrays))
        if odd := [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]:
            raise OffroadError(
                f"primitives {str(path)!r} do not fit: for {odd[0]!r} the file has {found.get(odd[0])}, expected "
                f"{wanted.get(odd[0])}; they were saved by another version of offroad"
            )
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in wanted])

    def _latent(self, window: Window, key: Key[Array, ""] | None) -> Float[Array, "batch z"]:
        """The posterior's mean, or a sample, inside the reach."""
        posterior = self.encode(window)
        return jnp.clip(posterior.mean if key is None else posterior.sample(key), -self.reach, self.reach)

    def _encoded(
        self, windows: Windows, rows: Int[np.ndarray, " n"], key: Key[Array, ""] | None
    ) -> Float[np.ndarray, "n z"]:
        encode, found = jax.jit(type(self)._latent), []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            window = windows.at(np.resize(part, CHUNK))  # the last one is filled up: one compilation
            one_key = None if key is None else jax.random.fold_in(key, start)
            found.append(np.asarray(encode(self, window, one_key))[: len(part)])
        return np.concatenate(found)

    def _descend(self, parameters: Any, gradient: Any) -> tuple[Any, PyTree[Array]]:
        change, state = _optimiser(self.config).update(gradient, self.optimiser_state)
        return optax.apply_updates(parameters, change), state

    def _must_be_frozen(self) -> None:
        if not self.frozen:
            raise OffroadError(
                "these primitives are still learning what latents mean; call primitives.freeze(dataset, key) first"
            )

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "a set of primitives")

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def kl(q: Normal, p: Normal) -> Float[Array, "*batch"]:
    """KL(q || p) of Gaussians, a sum over the dimensions."""
    spread, shift = jnp.exp(2 * (q.log_std - p.log_std)), (q.mean - p.mean) * jnp.exp(-p.log_std)
    return jnp.sum(0.5 * (spread + jnp.square(shift) - 1) + p.log_std - q.log_std, axis=-1)


def _optimiser(config: PrimitivesConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.gradient_norm), optax.adam(config.learning_rate))


def _named(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
