"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477): off-policy, Box actions.

A deterministic policy with three remedies for overestimated values: the smaller of two critics as target, noise on the
target's actions, and a policy and targets that move less often than the critics.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.agents.imitation import Imitation, imitation_loss
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.critic import Critic
from offroad.nets.encoder import Flat
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.normalise import ObservationNorm
from offroad.nets.policy import Policy
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class TD3Config:
    """Defaults are Stable-Baselines3's, but that it explores without noise unless told; noises are in units of half the
    action range.
    """

    learning_rate: float = 1e-3
    discount: float = 0.99  # gamma
    polyak: float = 0.005  # tau: how fast the targets follow, each time the policy moves
    batch: int = 256
    hidden: tuple[int, ...] = (400, 300)
    policy_delay: int = 2  # d: critic steps per step of the policy and the targets
    exploration_noise: float = 0.1  # std of the noise on actions while collecting
    target_noise: float = 0.2  # std of the noise that smooths the target policy (sigma)
    target_noise_clip: float = 0.5  # and its bound (c)
    normalise_observation: bool = False
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features
    imitation: Imitation | None = None  # how to learn from the demonstrations in a batch


class TD3(Agent):
    policy: Policy
    critics: Critic
    target_policy: Policy
    target_critics: Critic
    optimiser_states: tuple[PyTree[Array], PyTree[Array]]  # policy, critics
    updates: Int[Array, ""]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: TD3Config = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: TD3Config, key: Key[Array, ""]) -> "TD3":
        actions = box_actions(spaces, "td3")
        policy_key, critic_key = jax.random.split(key)
        policy = Policy(spaces.observation, actions, config.encoder, config.hidden, policy_key)

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key)

        critics = ensemble(critic, 2, critic_key)
        init = optax.adam(config.learning_rate).init
        return cls(
            policy=policy,
            critics=critics,
            target_policy=jax.tree.map(jnp.copy, policy),
            target_critics=jax.tree.map(jnp.copy, critics),
            optimiser_states=(init(policy), init(critics)),  # pyright: ignore[reportArgumentType]
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
        return ActionScale(box_actions(self.spaces, "td3")).to_env(unit), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["TD3", dict[str, Float[Array, ""]]]:
        config = self.config
        norm = (
            self.observation_norm.update(batch.observation) if config.normalise_observation else self.observation_norm
        )
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(box_actions(self.spaces, "td3")).to_unit(batch.action)

        # Clipped double Q-learning with target policy smoothing.
        noise = config.target_noise * jax.random.normal(key, action.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_action = jnp.clip(self.target_policy(following) + noise, -1, 1)
        next_value = jnp.min(apply_ensemble(self.target_critics, following, next_action), 0)
        target = batch.reward + config.discount * ~batch.terminated * next_value

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The squared error of both critics."""
            values = apply_ensemble(critics, observation, action)
            return jnp.mean(jnp.square(values - target), axis=1).sum(), jnp.mean(values)

        def policy_loss(policy: Policy) -> Float[Array, ""]:
            """Minus the first critic's value of the policy's actions: the deterministic policy gradient."""
            first: Critic = jax.tree.map(lambda x: x[0], critics)

            def value(action: Float[Array, "batch action"]) -> Float[Array, " batch"]:
                return first(observation, action)

            own = policy(observation)
            return imitation_loss(config.imitation, -jnp.mean(value(own)), own, action, batch.demonstrated, value)

        def move_policy(moving: Any) -> Any:
            policy, state, target_policy, target_critics = moving
            policy, state = self._descend(policy, jax.grad(policy_loss)(policy), state)
            target_policy = optax.incremental_update(policy, target_policy, config.polyak)
            target_critics = optax.incremental_update(critics, target_critics, config.polyak)  # pyright: ignore[reportArgumentType]
            return policy, state, target_policy, target_critics

        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = self._descend(self.critics, gradient, self.optimiser_states[1])
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
            observation_norm=norm,
        )
        return agent, {"critic_loss": loss, "value": value}  # pyright: ignore[reportReturnType]

    def _descend(self, parameters: Any, gradient: Any, state: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
        change, state = optax.adam(self.config.learning_rate).update(gradient, state)  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state  # pyright: ignore[reportReturnType, reportArgumentType]

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation
