"""The intrinsic curiosity module (Pathak et al. 2017, arXiv 1705.05363): the error of the agent's own forward model.

The reward of a step is 1/2 ||prediction of phi(s') - phi(s')||^2. What phi is decides what the agent is curious about:
features of an inverse model (the paper's), the observation itself ("pixels"), or a fixed random network, which Burda et
al. (2018, arXiv 1808.04355) found sufficient for many games, though learnt features appeared to generalise better.

It is drawn to whatever it cannot predict: noise that its actions switch on (a television with a remote control) holds
it, whatever the features.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import unknown
from offroad.nets.mlp import MLP
from offroad.nets.relational import EncoderConfig
from offroad.rewards.features import PATCHES, ActionCode, Features, InverseModel, View
from offroad.rewards.intrinsic import BonusScale, Fitting, IntrinsicReward, Scaling, weighted_mean

FEATURES = ("inverse", "random", "pixels")


@dataclass(frozen=True)
class ICMConfig:
    """Defaults: the paper's losses, but features that learn from the inverse one alone, as in the large-scale study."""

    features: str = "inverse"  # or "random", "pixels"
    size: int = 64  # of the features
    hidden: tuple[int, ...] = (256,)  # of every MLP
    beta: float = 0.2  # weight of the forward loss; 1 - beta is that of the inverse loss
    stop_gradient: bool = True  # of the forward loss at the features; the paper's reaches them, and they may shrink
    residual: bool = True  # the forward model predicts the change of the features
    encoder: EncoderConfig = PATCHES
    frames: int = 0  # how many of the newest frames of an image stack are seen; 0: all
    fitting: Fitting = field(default_factory=Fitting)
    scaling: Scaling = field(default_factory=Scaling)


class ForwardModel(eqx.Module):
    """phi(s) and the action to phi(s')."""

    head: MLP
    residual: bool = eqx.field(static=True)

    def __call__(
        self,
        phi: Float[Array, "*batch size"],
        action: Float[Array, "*batch action"],
        context: Float[Array, "*batch context"],
    ) -> Float[Array, "*batch size"]:
        """`context` is what the model reads; with `residual` the prediction is added to `phi`."""
        change = self.head(jnp.concatenate([context, action], -1))
        return phi + change if self.residual else change


class ICMModel(eqx.Module):
    """What learns. `inverse` only with the features of that name; `features` only with the others."""

    inverse: InverseModel | None
    features: Features | None
    forward: ForwardModel


class ICM(IntrinsicReward):
    """The bonus of a step is how badly the forward model foretells the features of what follows (equation 6)."""

    model: ICMModel
    optimiser_state: PyTree[Array]
    view: View
    memory: PyTree[Array]
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: ICMConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: ICMConfig, key: Key[Array, ""]) -> "ICM":
        if config.features not in FEATURES:
            raise unknown("feature space", config.features, FEATURES)
        features_key, forward_key = jax.random.split(key)
        view, action = View.create(spaces, config.frames), ActionCode(spaces)
        inverse = features = None
        if config.features == "inverse":
            inverse = InverseModel.create(view.space, action, config.encoder, config.hidden, config.size, features_key)
        else:
            features = Features.create(view.space, config.encoder, config.hidden, config.size, features_key)
        size = view.size if config.features == "pixels" else config.size
        sizes = (config.size + action.size, *config.hidden, size)
        forward = ForwardModel(MLP(sizes, key=forward_key, activation="relu", final_scale=0.1), config.residual)
        model = ICMModel(inverse, features, forward)
        return cls(
            model=model,
            optimiser_state=config.fitting.optimiser().init(model),  # pyright: ignore[reportArgumentType]
            view=view,
            memory=(),
            scale=BonusScale.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )

    def initial_memory(self, num_envs: int) -> PyTree[Array]:
        return ()

    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], PyTree[Array]]:
        before, after = self._encode(self.model, steps)
        return self.forward_error(self.model, steps, before, after), ()

    def features(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        """phi, for any leading axes."""
        seen = self.view(observation)
        return self.view.flat(seen) if self.config.features == "pixels" else self._network(self.model)(seen)

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["ICM", dict[str, Float[Array, ""]]]:
        steps, mask = jax.tree.map(jnp.asarray, (steps, mask))
        view = self.view.update(steps.observation, mask)
        learner = replace(self, view=view)
        model, state, metrics = self.config.fitting.fit(
            learner.loss, self.model, self.optimiser_state, steps, mask, key
        )
        return replace(learner, model=model, optimiser_state=state), metrics

    def loss(
        self, model: ICMModel, steps: Transition, weight: Float[Array, " batch"], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """(1 - beta) L_I + beta L_F, equation 7 of the paper without its policy term."""
        config = self.config
        before, after = self._encode(model, steps)
        ends = jax.lax.stop_gradient((before, after)) if config.stop_gradient else (before, after)
        forward = weighted_mean(self.forward_error(model, steps, *ends), weight)
        metrics = {"forward_loss": forward, "feature_std": jnp.mean(jnp.std(after, axis=0))}
        if model.inverse is None:
            return forward, metrics
        inverse, found = model.inverse.loss(before, after, steps.action, weight)
        return (1 - config.beta) * inverse + config.beta * forward, metrics | found

    def forward_error(
        self,
        model: ICMModel,
        steps: Transition,
        before: Float[Array, "*batch size"],
        after: Float[Array, "*batch size"],
    ) -> Float[Array, "*batch"]:
        """1/2 ||prediction - phi(s')||^2 (equation 6), the raw bonus."""
        action = ActionCode(self.spaces)(steps.action)
        context = self._network(model)(self.view(steps.observation)) if self.config.features == "pixels" else before
        predicted = model.forward(before, action, context)
        return 0.5 * jnp.sum(jnp.square(predicted - after), -1)

    def _encode(self, model: ICMModel, steps: Transition) -> tuple[Array, Array]:
        """phi(s) and phi(s')."""
        before, after = self.view(steps.observation), self.view(steps.next_observation)
        if self.config.features == "pixels":
            return self.view.flat(before), self.view.flat(after)
        network = self._network(model)
        phi = network(before), network(after)
        return jax.lax.stop_gradient(phi) if self.config.features == "random" else phi

    @staticmethod
    def _network(model: ICMModel) -> Features:
        network = model.features if model.inverse is None else model.inverse.features
        assert network is not None
        return network
