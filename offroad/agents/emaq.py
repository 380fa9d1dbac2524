"""Expected-max Q-learning (Ghasemipour, Schuurmans and Gu 2021, arXiv 2007.11091): learns from data alone, Box actions.

There is no policy network: a model of the data's behaviour proposes actions, and the best of N by the critics is what
the targets count with and what is played. Few proposals are near to cloning, many to Q-learning. The behaviour model
here is a mixture of Gaussians, where the paper's is autoregressive.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, at_least_one, box_actions
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.critic import Critic, values_of
from offroad.nets.distributions import Normal
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.ensemble import ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class EMaQConfig:
    learning_rate: float = 3e-4
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # how fast the target critics follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 2
    samples: int = 25  # N: proposals, in targets and in play; the paper tries 5 to 100
    pessimism: float = 0.75  # weight of the smallest critic's value, the rest is the largest one's
    components: int = 10  # Gaussians in the behaviour model
    layer_norm: bool = False  # in the critics
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class Behaviour(eqx.Module):
    """Observation -> mixture of Gaussians over actions in [-1, 1], each with independent components."""

    encoder: Encoder
    head: MLP
    components: int = eqx.field(static=True)

    def __call__(self, observation: PyTree[Any]) -> tuple[Float[Array, "*batch k"], Normal]:
        """Logits of the components, and the components."""
        out = self.head(self.encoder(observation))
        logits, rest = out[..., : self.components], out[..., self.components :]
        mean, log_std = jnp.split(rest.reshape(*rest.shape[:-1], self.components, -1), 2, axis=-1)
        return logits, Normal(jnp.tanh(mean), jnp.clip(log_std, -5, 2))

    def log_prob(self, observation: PyTree[Any], action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        logits, normals = self(observation)
        each = normals.log_prob(jnp.broadcast_to(action[..., None, :], normals.mean.shape))
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + each, axis=-1)

    def propose(
        self,
        observation: PyTree[Any],
        gumbel: Float[Any, "samples #batch k"],
        noise: Float[Any, "samples #batch action"],
    ) -> Float[Array, "samples batch action"]:
        """Actions of all samples, clipped to [-1, 1]: Gumbel noise chooses the component, normal noise the action."""
        logits, normals = self(observation)
        chosen = jax.nn.one_hot(jnp.argmax(logits + gumbel, -1), self.components)[..., None]
        mean, std = jnp.sum(chosen * normals.mean, -2), jnp.sum(chosen * jnp.exp(normals.log_std), -2)
        return jnp.clip(mean + std * noise, -1, 1)


class EMaQ(Agent):
    behaviour: Behaviour
    critics: Critic
    target_critics: Critic
    optimiser_states: tuple[PyTree[Array], PyTree[Array]]  # behaviour, critics
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: EMaQConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: EMaQConfig, key: Key[Array, ""]) -> "EMaQ":
        actions = box_actions(spaces, "emaq")
        at_least_one(config, "samples", "components")
        encoder_key, head_key, critic_key = jax.random.split(key, 3)
        encoder = config.encoder.build(spaces.observation, encoder_key)
        sizes = (encoder.size, *config.hidden, config.components * (1 + 2 * actions.shape[0]))
        head = MLP(sizes, key=head_key, activation="relu", init="uniform")
        behaviour = Behaviour(encoder, head, config.components)

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key, config.layer_norm)

        critics = ensemble(critic, config.critics, critic_key)
        init = optax.adam(config.learning_rate).init
        return cls(
            behaviour=behaviour,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            optimiser_states=(init(behaviour), init(critics)),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        """The best of N proposals; without a key they are made with the same noise for every observation."""
        observation = self._normalise(observation)
        samples, size, kinds = self.config.samples, self._actions.shape[0], self.config.components
        if key is None:
            random = np.random.default_rng(0)
            noises = random.gumbel(size=(samples, 1, kinds)), random.standard_normal((samples, 1, size))
            noises = jax.tree.map(np.float32, noises)
        else:
            noises = self._noises(key, jax.tree.leaves(observation)[0].shape[0])
        actions = self.behaviour.propose(observation, *noises)
        best = jax.nn.one_hot(jnp.argmax(self._worth(self.critics, observation, actions), 0), samples, axis=0)
        return ActionScale(self._actions).to_env(jnp.sum(best[..., None] * actions, 0)), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["EMaQ", dict[str, Float[Array, ""]]]:
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(self._actions).to_unit(batch.action)

        proposals = self.behaviour.propose(following, *self._noises(key, action.shape[0]))
        next_value = jnp.max(self._worth(self.target_critics, following, proposals), axis=0)
        target = batch.reward + config.discount * ~batch.terminated * next_value

        def behaviour_loss(behaviour: Behaviour) -> Float[Array, ""]:
            """Minus the likelihood of the data's actions."""
            return -jnp.mean(behaviour.log_prob(observation, action))

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The squared error, summed over the critics."""
            values = values_of(critics, observation, action[None])[:, 0]
            return jnp.mean(jnp.square(values - target), axis=1).sum(), jnp.mean(values)

        likelihood, gradient = jax.value_and_grad(behaviour_loss)(self.behaviour)
        behaviour, behaviour_state = self._descend(self.behaviour, gradient, self.optimiser_states[0])
        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = self._descend(self.critics, gradient, self.optimiser_states[1])
        agent = replace(
            self,
            behaviour=behaviour,
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),  # pyright: ignore[reportArgumentType]
            optimiser_states=(behaviour_state, critic_state),
        )
        return agent, {"critic_loss": loss, "behaviour_loss": likelihood, "value": value}

    def _worth(
        self, critics: Critic, observation: PyTree[Any], actions: Float[Array, "samples batch action"]
    ) -> Float[Array, "samples batch"]:
        values, low = values_of(critics, observation, actions), self.config.pessimism
        return low * jnp.min(values, 0) + (1 - low) * jnp.max(values, 0)

    def _noises(self, key: Key[Array, ""], batch: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        gumbel_key, normal_key = jax.random.split(key)
        shape = (self.config.samples, batch)
        gumbel = jax.random.gumbel(gumbel_key, (*shape, self.config.components))
        return gumbel, jax.random.normal(normal_key, (*shape, *self._actions.shape))

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "emaq")

    def _descend(self, parameters: Any, gradient: Any, state: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
        change, state = optax.adam(self.config.learning_rate).update(gradient, state)  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state  # pyright: ignore[reportReturnType, reportArgumentType]

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation
