"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971): off-policy, Box actions.

The ancestor of TD3, with one critic and none of its remedies, in the form in which it learns goal-conditioned tasks
with sparse rewards from hindsight (Andrychowicz et al. 2017, arXiv 1707.01495; Plappert et al. 2018, arXiv 1802.09464).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.agents.imitation import Imitation, imitation_loss
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.critic import Critic
from offroad.nets.encoder import Flat
from offroad.nets.normalise import ObservationNorm
from offroad.nets.policy import Policy
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class DDPGConfig:
    """Defaults are those of OpenAI's implementation of hindsight (baselines) but for `polyak`; noises are in units of
    half the action range.
    """

    learning_rate: float = 1e-3
    anneal_updates: int = 0  # in which it falls linearly; 0 keeps it
    anneal_to: float = 0.1  # times the learning rate: where it stays after that
    discount: float = 0.98  # gamma: 1 - 1/T for episodes of T = 50 steps
    polyak: float = 0.001  # tau, every update, as Lillicrap et al.; in baselines 0.05 every 40 updates
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256, 256)
    random_action: float = 0.3  # how often exploration acts uniformly at random
    exploration_noise: float = 0.2  # std of the noise on the other actions while collecting
    action_penalty: float = 1.0  # weight of the mean squared action in the policy's loss
    binary: tuple[int, ...] = ()  # components of the action that are switches: always at one of their bounds
    value_range: tuple[float, float] | None = None  # targets are clipped to it; (-1/(1-gamma), 0) for rewards -1 and 0
    normalise_observation: bool = False
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features
    imitation: Imitation | None = None  # how to learn from the demonstrations in a batch


class DDPG(Agent):
    policy: Policy
    critic: Critic
    target_policy: Policy
    target_critic: Critic
    optimiser_states: tuple[PyTree[Array], PyTree[Array]]  # policy, critic
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: DDPGConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: DDPGConfig, key: Key[Array, ""]) -> "DDPG":
        actions = box_actions(spaces, "ddpg")
        if wrong := [i for i in config.binary if not 0 <= i < actions.shape[0]]:
            raise OffroadError(
                f"binary names component {wrong[0]} of an action with {actions.shape[0]} components; count from 0"
            )
        policy_key, critic_key = jax.random.split(key)
        policy = Policy(spaces.observation, actions, config.encoder, config.hidden, policy_key)
        critic = Critic(spaces.observation, actions, config.encoder, config.hidden, critic_key)
        init = _adam(config).init
        return cls(
            policy=policy,
            critic=critic,
            target_policy=jax.tree.map(jnp.copy, policy),
            target_critic=jax.tree.map(jnp.copy, critic),
            optimiser_states=(init(policy), init(critic)),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        unit = self.policy(self._normalise(observation))
        if key is not None:
            coin_key, uniform_key, noise_key = jax.random.split(key, 3)
            noisy = unit + self.config.exploration_noise * jax.random.normal(noise_key, unit.shape)
            uniform = jax.random.uniform(uniform_key, unit.shape, minval=-1, maxval=1)
            coin = jax.random.bernoulli(coin_key, self.config.random_action, (*unit.shape[:-1], 1))
            unit = jnp.where(coin, uniform, jnp.clip(noisy, -1, 1))
        return self._scale.to_env(self._switch(unit)), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["DDPG", dict[str, Float[Array, ""]]]:
        config = self.config
        norm = (
            self.observation_norm.update(batch.observation) if config.normalise_observation else self.observation_norm
        )
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        # Whoever chose the actions (this agent, random exploration, a demonstrator), switches were at a bound.
        action = self._switch(self._scale.to_unit(batch.action))

        next_value = self.target_critic(following, self._switch(self.target_policy(following)))
        target = batch.reward + config.discount * ~batch.terminated * next_value
        if config.value_range is not None:
            target = jnp.clip(target, *config.value_range)

        def critic_loss(critic: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The squared error."""
            values = critic(observation, action)
            return jnp.mean(jnp.square(values - target)), jnp.mean(values)

        def policy_loss(policy: Policy, critic: Critic) -> Float[Array, ""]:
            """Minus the value of the policy's actions, and the penalty that keeps tanh from saturating.

            The gradient needs switches that move, so the critic interpolates between their bounds here.
            """

            def value(action: Float[Array, "batch action"]) -> Float[Array, " batch"]:
                return critic(observation, action)

            own = policy(observation)
            motion = own[:, ~self._switches]
            penalty = jnp.mean(jnp.square(motion)) if motion.size else 0.0
            loss = config.action_penalty * penalty - jnp.mean(value(own))
            return imitation_loss(config.imitation, loss, own, action, batch.demonstrated, value)

        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critic)
        critic, critic_state = self._descend(self.critic, gradient, self.optimiser_states[1])
        actor_loss, gradient = jax.value_and_grad(policy_loss)(self.policy, critic)
        policy, policy_state = self._descend(self.policy, gradient, self.optimiser_states[0])
        agent = replace(
            self,
            policy=policy,
            critic=critic,
            target_policy=optax.incremental_update(policy, self.target_policy, config.polyak),  # pyright: ignore[reportArgumentType]
            target_critic=optax.incremental_update(critic, self.target_critic, config.polyak),  # pyright: ignore[reportArgumentType]
            optimiser_states=(policy_state, critic_state),
            observation_norm=norm,
        )
        return agent, {"critic_loss": loss, "policy_loss": actor_loss, "value": value}

    @property
    def _scale(self) -> ActionScale:
        return ActionScale(box_actions(self.spaces, "ddpg"))

    @property
    def _switches(self) -> Bool[np.ndarray, " action"]:
        return np.isin(np.arange(box_actions(self.spaces, "ddpg").shape[0]), self.config.binary)

    def _switch(self, unit: Float[Array, "batch action"]) -> Float[Array, "batch action"]:
        """The action with its binary components at -1 or 1."""
        return jnp.where(self._switches, jnp.where(unit > 0, 1.0, -1.0), unit)

    def _descend(self, parameters: Any, gradient: Any, state: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
        change, state = _adam(self.config).update(gradient, state)  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state  # pyright: ignore[reportReturnType, reportArgumentType]

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _adam(config: DDPGConfig) -> optax.GradientTransformation:
    if not config.anneal_updates:
        return optax.adam(config.learning_rate)
    final = config.anneal_to * config.learning_rate
    return optax.adam(optax.linear_schedule(config.learning_rate, final, config.anneal_updates))
