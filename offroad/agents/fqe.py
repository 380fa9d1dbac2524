"""Fitted Q evaluation (Le, Voloshin and Yue 2019, arXiv 1903.08738): what a policy is worth, from data of another one.

Critics learn the value of always following one frozen policy, from transitions that somebody else collected. Needs no
propensities and no environment. `train.offline` trains it like an agent; it never changes the policy.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import ActionScale, box_actions
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.critic import Critic
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class FQEConfig:
    learning_rate: float = 3e-4
    discount: float | int = 0.99  # gamma; 1 where episodes end and the observation tells how far they are
    polyak: float = 0.005  # how fast the target critics follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 5  # whose disagreement tells how little the data say
    value_range: tuple[float | int, float | int] | None = None  # of possible returns: targets and values are clipped
    sampled: bool = False  # evaluates the policy's sampled actions instead of its deterministic ones
    layer_norm: bool = False
    normalise_observation: bool = False
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class ActionValues(eqx.Module):
    """Observation -> one value per discrete action."""

    encoder: Encoder
    head: MLP

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch actions"]:
        return self.head(self.encoder(observation))


class FQE(eqx.Module):
    critics: PyTree[Array]
    target_critics: PyTree[Array]
    optimiser_state: PyTree[Array]
    policy: PyTree[Any]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: FQEConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: FQEConfig, policy: Any, key: Key[Array, ""]) -> "FQE":
        """Critics for `policy`, an agent or anything else with its `act(observation, key)`, without memory."""
        if config.value_range is not None and not config.value_range[0] < config.value_range[1]:
            raise OffroadError(f"value_range is {config.value_range}; expected the lowest return before the highest")
        discrete = isinstance(spaces.action, gym_spaces.Discrete)
        box = None if discrete else box_actions(spaces, "fqe")

        def make(key: Key[Array, ""]) -> eqx.Module:
            if box is not None:
                return Critic(spaces.observation, box, config.encoder, config.hidden, key, layer_norm=config.layer_norm)
            encoder_key, head_key = jax.random.split(key)
            encoder = config.encoder.build(spaces.observation, encoder_key)
            sizes = (encoder.size, *config.hidden, int(spaces.action.n))  # pyright: ignore[reportAttributeAccessIssue]
            head = MLP(sizes, key=head_key, activation="relu", init="uniform", layer_norm=config.layer_norm)
            return ActionValues(encoder, head)

        critics = ensemble(make, config.critics, key)
        return cls(
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            optimiser_state=optax.adam(config.learning_rate).init(critics),
            policy=policy,
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["FQE", dict[str, Float[Array, ""]]]:
        """One gradient step of every critic towards its own target, all on the same batch."""
        config, norm = self.config, self.observation_norm
        if config.normalise_observation:
            norm = norm.update(batch.observation)
        next_values = self._values(
            self.target_critics, batch.next_observation, self._chosen(batch.next_observation, key)
        )
        target = self._clip(batch.reward + config.discount * ~batch.terminated * next_values)

        def loss(critics: PyTree[Array]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            values = self._values(critics, batch.observation, batch.action)
            return jnp.sum(jnp.mean(jnp.square(values - target), -1)), jnp.mean(values)

        (error, value), gradient = jax.value_and_grad(loss, has_aux=True)(self.critics)
        change, state = optax.adam(config.learning_rate).update(gradient, self.optimiser_state)
        critics: Any = optax.apply_updates(self.critics, change)
        learner = replace(
            self,
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),
            optimiser_state=state,
            observation_norm=norm,
        )
        return learner, {"loss": error / config.critics, "value": value}

    def value(self, observations: PyTree[Any], key: Key[Array, ""] | None = None) -> Float[Array, "critics batch"]:
        """What the policy is worth from each observation on, by each critic. A sampled policy needs a key."""
        return self._clip(self._values(self.critics, observations, self._chosen(observations, key)))

    def action_value(self, observations: PyTree[Any], actions: Any) -> Float[Array, "critics batch"]:
        """What it is worth to take these actions, in the environment's units, and to follow the policy after."""
        return self._clip(self._values(self.critics, observations, actions))

    def _chosen(self, observation: PyTree[Any], key: Key[Array, ""] | None) -> Any:
        """The policy's actions."""
        if self.config.sampled and key is None:
            raise OffroadError("this FQE evaluates a policy's sampled actions; pass a key")
        return self.policy.act(observation, key if self.config.sampled else None)[0]

    def _values(self, critics: PyTree[Array], observation: PyTree[Any], action: Any) -> Float[Array, "critics batch"]:
        observation = self.observation_norm(observation) if self.config.normalise_observation else observation
        space = self.spaces.action
        if isinstance(space, gym_spaces.Discrete):
            values = apply_ensemble(critics, observation)
            return jnp.take_along_axis(values, (action - int(space.start))[None, :, None], -1)[..., 0]
        box = box_actions(self.spaces, "fqe")
        unit = ActionScale(box).to_unit(jnp.clip(action, box.low, box.high))  # what the environment would be given
        return apply_ensemble(critics, observation, unit)

    def _clip(self, values: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return values if self.config.value_range is None else jnp.clip(values, *self.config.value_range)
