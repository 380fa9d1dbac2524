"""Conservative Q-learning for discrete actions (Kumar et al. 2020, arXiv 2006.04779): learns from data alone.

Deep Q-learning, by default double, that also pushes down the soft maximum of a state's values and pushes up the value
of the action that the data holds.
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
from offroad.agents.dqn import QNetwork
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.encoder import Flat
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class DiscreteCQLConfig:
    """The weight is the authors' for a tenth of Atari's data (4 for a hundredth); the rest suits small networks."""

    learning_rate: float = 3e-4
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # how fast the target follows
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    weight: float = 1.0  # alpha: of the gap beside the temporal-difference error
    epsilon: float = 0.05  # how often a sampled action is uniformly random
    double: bool = True  # the online network chooses the target's action
    dueling: bool = False  # separate heads for the state's value and the actions' advantages
    layer_norm: bool = False
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class DiscreteCQL(Agent):
    network: QNetwork
    target_network: QNetwork
    optimiser_state: PyTree[Array]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: DiscreteCQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: DiscreteCQLConfig, key: Key[Array, ""]) -> "DiscreteCQL":
        if not isinstance(spaces.action, gym_spaces.Discrete):
            raise OffroadError(
                f"discrete_cql needs a Discrete action space, these data have {spaces.action}; use cql for Box"
            )
        encoder_key, advantage_key, value_key = jax.random.split(key, 3)
        encoder = config.encoder.build(spaces.observation, encoder_key)

        def head(size: int, key: Key[Array, ""]) -> MLP:
            sizes = (encoder.size, *config.hidden, size)
            return MLP(sizes, key=key, activation="relu", init="uniform", layer_norm=config.layer_norm)

        network = QNetwork(
            encoder, head(int(spaces.action.n), advantage_key), head(1, value_key) if config.dueling else None
        )
        return cls(
            network=network,
            target_network=jax.tree.map(jnp.copy, network),
            optimiser_state=optax.adam(config.learning_rate).init(network),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Int[Array, " batch"], PyTree[Any]]:
        values = self.network(self._normalise(observation))
        action = jnp.argmax(values, -1)
        if key is not None:
            coin_key, choice_key = jax.random.split(key)
            explore = jax.random.bernoulli(coin_key, self.config.epsilon, action.shape)
            action = jnp.where(explore, jax.random.randint(choice_key, action.shape, 0, values.shape[-1]), action)
        return action + self._start, memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["DiscreteCQL", dict[str, Float[Array, ""]]]:
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = batch.action - self._start

        next_values = self.target_network(following)
        chosen = jnp.argmax(self.network(following) if config.double else next_values, -1)
        target = batch.reward + config.discount * ~batch.terminated * _pick(next_values, chosen)

        def critic_loss(network: QNetwork) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            """CQL(H), where the sum over actions is exact."""
            values = network(observation)
            value = _pick(values, action)
            gap = jnp.mean(jax.nn.logsumexp(values, axis=-1) - value)
            error = 0.5 * jnp.mean(jnp.square(value - target))
            return config.weight * gap + error, (gap, jnp.mean(value))

        (loss, (gap, value)), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.network)
        change, state = optax.adam(config.learning_rate).update(gradient, self.optimiser_state)
        network: Any = optax.apply_updates(self.network, change)  # pyright: ignore[reportArgumentType]
        agent = replace(
            self,
            network=network,
            target_network=optax.incremental_update(network, self.target_network, config.polyak),  # pyright: ignore[reportArgumentType]
            optimiser_state=state,
        )
        return agent, {"loss": loss, "gap": gap, "value": value}

    @property
    def _start(self) -> int:
        return int(self.spaces.action.start)  # pyright: ignore[reportAttributeAccessIssue]

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _pick(values: Float[Array, "batch action"], action: Int[Array, " batch"]) -> Float[Array, " batch"]:
    return jnp.take_along_axis(values, action[:, None], -1)[:, 0]
