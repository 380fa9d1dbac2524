"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): learns from data alone, Box actions.

TD3+BC revisited: deeper networks with layer normalisation in the critics, and two separate penalties for leaving the
data's actions, one on the policy and one on the values that the critics learn.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.critic import Critic
from offroad.nets.encoder import Flat
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.normalise import ObservationNorm
from offroad.nets.policy import Policy
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class ReBRACConfig:
    """Defaults are those of the authors' code but for the penalties, which are to be tuned; noises are in units of half
    the action range.

    CORL takes, for D4RL's ant mazes, rewards times 100, policy_learning_rate 3e-4, critic_learning_rate 5e-5, discount
    0.999, batch 256, penalties 0.001 and 0 (medium-diverse) or 0.002 and 0.002 (large-diverse).
    """

    policy_learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # tau: how fast the targets follow, each time the policy moves
    batch: int = 1024
    hidden: tuple[int, ...] = (256, 256, 256)
    layer_norm: bool = True  # in the critics
    policy_delay: int = 2  # critic steps per step of the policy and the targets
    policy_penalty: float = 0.01  # beta_1: weight of the cloning error beside a value of mean size 1
    critic_penalty: float = 0.0  # beta_2: weight of that error in the targets; above 0 the data must have next actions
    exploration_noise: float = 0.1  # std of the noise on actions that are sampled
    target_noise: float = 0.2  # std of the noise that smooths the target policy
    target_noise_clip: float = 0.5  # and its bound
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class ReBRAC(Agent):
    policy: Policy
    critics: Critic
    target_policy: Policy
    target_critics: Critic
    optimiser_states: tuple[PyTree[Array], PyTree[Array]]  # policy, critics
    updates: Int[Array, ""]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: ReBRACConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: ReBRACConfig, key: Key[Array, ""]) -> "ReBRAC":
        actions = box_actions(spaces, "rebrac")
        policy_key, critic_key = jax.random.split(key)
        policy = Policy(spaces.observation, actions, config.encoder, config.hidden, policy_key)

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key, config.layer_norm)

        critics = ensemble(critic, 2, critic_key)
        return cls(
            policy=policy,
            critics=critics,
            target_policy=jax.tree.map(jnp.copy, policy),
            target_critics=jax.tree.map(jnp.copy, critics),
            optimiser_states=(
                optax.adam(config.policy_learning_rate).init(policy),  # pyright: ignore[reportArgumentType]
                optax.adam(config.critic_learning_rate).init(critics),
            ),
            updates=jnp.zeros((), jnp.int32),
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        unit = self.policy(self._normalise(observation))
        if key is not None:
            unit = jnp.clip(unit + self.config.exploration_noise * jax.random.normal(key, unit.shape), -1, 1)
        return ActionScale(self._actions).to_env(unit), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["ReBRAC", dict[str, Float[Array, ""]]]:
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(self._actions).to_unit(batch.action)

        noise = config.target_noise * jax.random.normal(key, action.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_action = jnp.clip(self.target_policy(following) + noise, -1, 1)
        next_value = jnp.min(apply_ensemble(self.target_critics, following, next_action), 0)
        if config.critic_penalty:
            if batch.next_action is None:
                raise OffroadError(
                    "rebrac's critic_penalty needs the data's next actions, these transitions have none; "
                    "give Transition.next_action or set critic_penalty=0"
                )
            away = next_action - ActionScale(self._actions).to_unit(batch.next_action)
            next_value -= config.critic_penalty * jnp.sum(jnp.square(away), -1)
        target = batch.reward + config.discount * ~batch.terminated * next_value

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The squared error of both critics, as in TD3."""
            values = apply_ensemble(critics, observation, action)
            return jnp.mean(jnp.square(values - target), axis=1).sum(), jnp.mean(values)

        def policy_loss(policy: Policy) -> Float[Array, ""]:
            """beta_1 |pi(s) - a|^2 - lambda Q(s, pi(s)), with lambda = 1 / mean |Q| and the smaller of the critics."""
            own = policy(observation)
            values = jnp.min(apply_ensemble(critics, observation, own), 0)
            weight = 1 / jax.lax.stop_gradient(jnp.mean(jnp.abs(values)))
            away = jnp.sum(jnp.square(own - action), -1)
            return jnp.mean(config.policy_penalty * away - weight * values)

        def move_policy(moving: Any) -> Any:
            policy, state, target_policy, target_critics = moving
            policy, state = _descend(config.policy_learning_rate, policy, jax.grad(policy_loss)(policy), state)
            target_policy = optax.incremental_update(policy, target_policy, config.polyak)
            target_critics = optax.incremental_update(critics, target_critics, config.polyak)  # pyright: ignore[reportArgumentType]
            return policy, state, target_policy, target_critics

        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = _descend(config.critic_learning_rate, self.critics, gradient, self.optimiser_states[1])
        updates = self.updates + 1
        policy, policy_state, target_policy, target_critics = jax.lax.cond(
            updates % config.policy_delay == 0,
            move_policy,
            lambda still: still,
            (self.policy, self.optimiser_states[0], self.target_policy, self.target_critics),
        )
        agent = replace(
            self,
            policy=policy,
            critics=critics,
            target_policy=target_policy,
            target_critics=target_critics,
            optimiser_states=(policy_state, critic_state),
            updates=updates,
        )
        return agent, {"critic_loss": loss, "value": value}  # pyright: ignore[reportReturnType]

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "rebrac")

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _descend(rate: float, parameters: Any, gradient: Any, state: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
    change, state = optax.adam(rate).update(gradient, state)  # pyright: ignore[reportArgumentType]
    return optax.apply_updates(parameters, change), state  # pyright: ignore[reportReturnType, reportArgumentType]
