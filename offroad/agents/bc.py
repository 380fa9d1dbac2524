"""Behaviour cloning (Pomerleau 1989): supervised learning of a demonstrator's actions, Box or Discrete.

Rewards and what follows are not looked at. The simplest baseline for learning from data, and a start for others.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.distributions import Categorical
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class BCConfig:
    learning_rate: float = 1e-3
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class Imitator(eqx.Module):
    """Observation -> an action in [-1, 1] before the tanh, or one logit per discrete action."""

    encoder: Encoder
    head: MLP

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch out"]:
        return self.head(self.encoder(observation))


class BC(Agent):
    policy: Imitator
    optimiser_state: PyTree[Array]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: BCConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: BCConfig, key: Key[Array, ""]) -> "BC":
        action = spaces.action
        outputs = int(action.n) if isinstance(action, gym_spaces.Discrete) else box_actions(spaces, "bc").shape[0]
        encoder_key, head_key = jax.random.split(key)
        encoder = config.encoder.build(spaces.observation, encoder_key)
        sizes = (encoder.size, *config.hidden, outputs)
        policy = Imitator(encoder, MLP(sizes, key=head_key, activation="relu", init="uniform"))
        return cls(
            policy=policy,
            optimiser_state=optax.adam(config.learning_rate).init(policy),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Array, PyTree[Any]]:
        """The demonstrator's most likely action; with a key, discrete ones are sampled from the cloned distribution."""
        out = self.policy(self._normalise(observation))
        if isinstance(self.spaces.action, gym_spaces.Discrete):
            choice = Categorical(out)
            action = choice.mode() if key is None else choice.sample(key)
            return action + int(self.spaces.action.start), memory
        return ActionScale(box_actions(self.spaces, "bc")).to_env(jnp.tanh(out)), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["BC", dict[str, Float[Array, ""]]]:
        config = self.config
        observation = self._normalise(batch.observation)

        def loss(policy: Imitator) -> Float[Array, ""]:
            """The squared error of actions in [-1, 1], or the cross entropy of discrete ones."""
            out = policy(observation)
            if isinstance(self.spaces.action, gym_spaces.Discrete):
                return -jnp.mean(Categorical(out).log_prob(batch.action - int(self.spaces.action.start)))
            unit = ActionScale(box_actions(self.spaces, "bc")).to_unit(batch.action)
            return jnp.mean(jnp.square(jnp.tanh(out) - unit))

        value, gradient = jax.value_and_grad(loss)(self.policy)
        change, state = optax.adam(config.learning_rate).update(gradient, self.optimiser_state)
        policy: Any = optax.apply_updates(self.policy, change)  # pyright: ignore[reportArgumentType]
        return replace(self, policy=policy, optimiser_state=state), {"loss": value}

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation
