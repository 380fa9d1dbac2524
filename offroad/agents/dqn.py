"""Deep Q-networks (Mnih et al. 2015) for discrete actions: off-policy, epsilon-greedy, with a frozen copy as target.

Double Q-learning (van Hasselt et al. 2016, arXiv 1509.06461) by default; dueling heads (Wang et al. 2016, arXiv
1511.06581) on request.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import Agent
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.encoder import Flat
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class DQNConfig:
    """Defaults are Stable-Baselines3's but for `double`. Its schedules count environment steps, four to an update; here
    they count updates, and exploration falls as in a run of a million steps.
    """

    learning_rate: float = 1e-4
    discount: float = 0.99  # gamma
    batch: int = 32
    hidden: tuple[int, ...] = (64, 64)
    target_every: int = 2_500  # updates between copies of the network into its target
    initial_epsilon: float = 1.0  # how often exploration acts at random, at first
    final_epsilon: float = 0.05  # and from `epsilon_updates` on; linear between
    epsilon_updates: int = 25_000
    max_grad_norm: float = 10.0
    double: bool = True  # the online network chooses the target's action
    dueling: bool = False  # separate heads for the state's value and the actions' advantages
    normalise_observation: bool = False
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class QNetwork(eqx.Module):
    """Observation -> one value per action."""

    encoder: eqx.Module
    advantage: MLP
    value: MLP | None

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch action"]:
        features = self.encoder(observation)  # pyright: ignore[reportCallIssue]
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - jnp.mean(advantage, -1, keepdims=True)  # as Wang et al.


class DQN(Agent):
    network: QNetwork
    target_network: QNetwork
    optimiser_state: PyTree[Array]
    updates: Int[Array, ""]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: DQNConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: DQNConfig, key: Key[Array, ""]) -> "DQN":
        if not isinstance(spaces.action, gym_spaces.Discrete):
            raise OffroadError(
                f"dqn needs a Discrete action space, this environment has {spaces.action}; use ppo, sac or td3 for Box"
            )
        encoder_key, advantage_key, value_key = jax.random.split(key, 3)
        encoder = config.encoder.build(spaces.observation, encoder_key)

        def head(size: int, key: Key[Array, ""]) -> MLP:
            return MLP((encoder.size, *config.hidden, size), key=key, activation="relu", init="uniform")

        network = QNetwork(
            encoder, head(int(spaces.action.n), advantage_key), head(1, value_key) if config.dueling else None
        )
        return cls(
            network=network,
            target_network=jax.tree.map(jnp.copy, network),
            optimiser_state=_optimiser(config).init(network),  # pyright: ignore[reportArgumentType]
            updates=jnp.zeros((), jnp.int32),
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    @property
    def epsilon(self) -> Float[Array, ""]:
        """The present share of random actions while exploring."""
        config = self.config
        progress = jnp.minimum(self.updates / config.epsilon_updates, 1)
        return config.initial_epsilon + progress * (config.final_epsilon - config.initial_epsilon)

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Int[Array, " batch"], PyTree[Any]]:
        values = self.network(self._normalise(observation))
        action = jnp.argmax(values, -1)
        if key is not None:
            coin_key, choice_key = jax.random.split(key)
            explore = jax.random.bernoulli(coin_key, self.epsilon, action.shape)
            action = jnp.where(explore, jax.random.randint(choice_key, action.shape, 0, values.shape[-1]), action)
        return action + self._start, memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["DQN", dict[str, Float[Array, ""]]]:
        config = self.config
        norm = (
            self.observation_norm.update(batch.observation) if config.normalise_observation else self.observation_norm
        )
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = batch.action - self._start

        # The target of van Hasselt et al.; without `double`, that of Mnih et al.
        next_values = self.target_network(following)
        chosen = jnp.argmax(self.network(following) if config.double else next_values, -1)
        target = batch.reward + config.discount * ~batch.terminated * _pick(next_values, chosen)

        def loss(network: QNetwork) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The Huber loss, whose gradient is that of the squared error with errors clipped to [-1, 1]."""
            value = _pick(network(observation), action)
            return jnp.mean(optax.huber_loss(value, target)), jnp.mean(value)

        (error, value), gradient = jax.value_and_grad(loss, has_aux=True)(self.network)
        change, state = _optimiser(config).update(gradient, self.optimiser_state)
        network: Any = optax.apply_updates(self.network, change)  # pyright: ignore[reportArgumentType]
        updates = self.updates + 1
        target_network: Any = optax.periodic_update(network, self.target_network, updates, config.target_every)  # pyright: ignore[reportArgumentType]
        agent = replace(
            self,
            network=network,
            target_network=target_network,
            optimiser_state=state,
            updates=updates,
            observation_norm=norm,
        )
        return agent, {"loss": error, "value": value, "epsilon": self.epsilon}  # pyright: ignore[reportReturnType]

    @property
    def _start(self) -> int:
        return int(self.spaces.action.start)  # pyright: ignore[reportAttributeAccessIssue]

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _pick(values: Float[Array, "batch action"], action: Int[Array, " batch"]) -> Float[Array, " batch"]:
    return jnp.take_along_axis(values, action[:, None], -1)[:, 0]


def _optimiser(config: DQNConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate))
