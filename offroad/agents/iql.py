"""Implicit Q-learning (Kostrikov, Nair and Levine 2022, arXiv 2110.06169): learns from data alone, Box actions.

Nothing here asks for the value of an action that the data does not hold. An upper expectile of the critics' values
over the data's actions stands for the maximum, and the policy clones the data's actions weighted by their advantage.
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
from offroad.nets.critic import Critic
from offroad.nets.distributions import Normal
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class IQLConfig:
    """Defaults are the authors' for locomotion. Their ant mazes: expectile 0.9, beta 10, rewards less 1. Kitchens:
    expectile 0.7, beta 0.5, dropout 0.1.
    """

    learning_rate: float = 3e-4
    anneal_updates: int = 0  # in which the policy's falls to 0 along a cosine (the authors: 1,000,000); 0 keeps it
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # how fast the target critics follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    expectile: float = 0.7  # tau: 0.5 is the mean over the data's actions, 1 the best of them
    inverse_temperature: float = 3.0  # beta: 0 clones all actions alike, more trusts the advantages more
    max_weight: float = 100.0  # of an action in the policy's loss
    layer_norm: bool = False  # in critics and value
    dropout: float = 0.0  # share of the policy's hidden units that each update silences
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class Actor(eqx.Module):
    """Observation -> Gaussian over actions, with a mean in [-1, 1] and a spread that is the same in every state.

    The Gaussian itself is not squashed: densities of actions at the bounds stay finite.
    """

    encoder: Encoder
    head: MLP
    log_std: Float[Array, " action"]

    def __call__(self, observation: PyTree[Any], key: Key[Array, ""] | None = None) -> Normal:
        """`key` is that of the dropout, of which there is none without it."""
        mean = jnp.tanh(self.head(self.encoder(observation), key))
        return Normal(mean, jnp.clip(self.log_std, -5, 2))


class Value(eqx.Module):
    """Observation -> value."""

    encoder: Encoder
    head: MLP

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch"]:
        return self.head(self.encoder(observation))[..., 0]


class IQL(Agent):
    actor: Actor
    value: Value
    critics: Critic
    target_critics: Critic
    optimiser_states: tuple[PyTree[Array], PyTree[Array], PyTree[Array]]  # actor, value, critics
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: IQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: IQLConfig, key: Key[Array, ""]) -> "IQL":
        actions = box_actions(spaces, "iql")
        actor_key, value_key, critic_key = jax.random.split(key, 3)

        def net(size: int, key: Key[Array, ""], **options: Any) -> tuple[Encoder, MLP]:
            encoder_key, head_key = jax.random.split(key)
            encoder = config.encoder.build(spaces.observation, encoder_key)
            sizes = (encoder.size, *config.hidden, size)
            return encoder, MLP(sizes, key=head_key, activation="relu", init="uniform", **options)

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key, config.layer_norm)

        actor = Actor(*net(actions.shape[0], actor_key, dropout=config.dropout), jnp.zeros(actions.shape))
        value = Value(*net(1, value_key, layer_norm=config.layer_norm))
        critics = ensemble(critic, 2, critic_key)
        init = optax.adam(config.learning_rate).init
        return cls(
            actor=actor,
            value=value,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            optimiser_states=(_policy_adam(config).init(actor), init(value), init(critics)),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        policy = self.actor(self._normalise(observation))
        unit = policy.mode() if key is None else jnp.clip(policy.sample(key), -1, 1)
        return ActionScale(self._actions).to_env(unit), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["IQL", dict[str, Float[Array, ""]]]:
        """One step of value, policy and critics, in this order; only the policy's dropout is random."""
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(self._actions).to_unit(batch.action)
        worth = jnp.min(apply_ensemble(self.target_critics, observation, action), 0)

        def value_loss(value: Value) -> Float[Array, ""]:
            """L_V: expectile regression on the smaller of the target critics' values."""
            return jnp.mean(expectile_loss(worth - value(observation), config.expectile))

        loss_value, gradient = jax.value_and_grad(value_loss)(self.value)
        adam = optax.adam(config.learning_rate)
        value, value_state = _descend(adam, self.value, gradient, self.optimiser_states[1])

        advantage = worth - value(observation)
        weight = jnp.minimum(jnp.exp(config.inverse_temperature * advantage), config.max_weight)

        def policy_loss(actor: Actor) -> Float[Array, ""]:
            """L_pi: the likelihood of the data's actions, weighted by their advantage."""
            return -jnp.mean(weight * actor(observation, key).log_prob(action))

        loss_policy, gradient = jax.value_and_grad(policy_loss)(self.actor)
        actor, actor_state = _descend(_policy_adam(config), self.actor, gradient, self.optimiser_states[0])

        target = batch.reward + config.discount * ~batch.terminated * value(following)

        def critic_loss(critics: Critic) -> Float[Array, ""]:
            """L_Q, summed over the critics."""
            values = apply_ensemble(critics, observation, action)
            return jnp.mean(jnp.square(values - target), axis=1).sum()

        loss_critic, gradient = jax.value_and_grad(critic_loss)(self.critics)
        critics, critic_state = _descend(adam, self.critics, gradient, self.optimiser_states[2])

        agent = replace(
            self,
            actor=actor,
            value=value,
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),  # pyright: ignore[reportArgumentType]
            optimiser_states=(actor_state, value_state, critic_state),
        )
        return agent, {
            "critic_loss": loss_critic,
            "value_loss": loss_value,
            "policy_loss": loss_policy,
            "value": jnp.mean(worth),
            "advantage": jnp.mean(advantage),
        }

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "iql")

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def expectile_loss(error: Float[Array, "*batch"], expectile: float) -> Float[Array, "*batch"]:
    """|tau - 1(error < 0)| error^2, whose minimum over a constant is the tau-expectile of what it is compared with."""
    return jnp.where(error < 0, 1 - expectile, expectile) * jnp.square(error)


def _policy_adam(config: IQLConfig) -> optax.GradientTransformation:
    if not config.anneal_updates:
        return optax.adam(config.learning_rate)
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.anneal_updates))


def _descend(adam: optax.GradientTransformation, parameters: Any, gradient: Any, state: Any) -> tuple[Any, Any]:
    change, state = adam.update(gradient, state)
    return optax.apply_updates(parameters, change), state
