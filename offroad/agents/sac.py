"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905).

Off-policy learning of a stochastic policy that is rewarded for entropy. Two critics, slowly moving copies of them as
targets, and a temperature that is tuned to hold a target entropy.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, box_actions
from offroad.agents.imitation import Imitation, imitation_loss
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.critic import Critic
from offroad.nets.distributions import TanhNormal
from offroad.nets.encoder import Flat
from offroad.nets.ensemble import apply_ensemble, ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class SACConfig:
    """Defaults are the authors' (softlearning)."""

    learning_rate: float = 3e-4
    discount: float = 0.99  # gamma
    polyak: float = 0.005  # tau: how fast the target critics follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 2
    target_entropy: float | None = None  # None: minus the number of actions
    initial_temperature: float = 1.0  # alpha
    normalise_observation: bool = False
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features
    imitation: Imitation | None = None  # how to learn from the demonstrations in a batch


class Actor(eqx.Module):
    """Observation -> squashed Gaussian over actions in [-1, 1]."""

    encoder: eqx.Module
    head: MLP

    def __call__(self, observation: PyTree[Any]) -> TanhNormal:
        mean, log_std = jnp.split(self.head(self.encoder(observation)), 2, axis=-1)  # pyright: ignore[reportCallIssue]
        return TanhNormal(mean, jnp.clip(log_std, -20, 2))


class SAC(Agent):
    actor: Actor
    critics: Critic
    target_critics: Critic
    log_temperature: Float[Array, ""]
    optimiser_states: tuple[PyTree[Array], PyTree[Array], PyTree[Array]]  # actor, critics, temperature
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: SACConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: SACConfig, key: Key[Array, ""]) -> "SAC":
        actions = box_actions(spaces, "sac")
        encoder_key, head_key, critic_key = jax.random.split(key, 3)
        encoder = config.encoder.build(spaces.observation, encoder_key)
        sizes = (encoder.size, *config.hidden, 2 * actions.shape[0])
        actor = Actor(encoder, MLP(sizes, key=head_key, activation="relu", init="uniform"))

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key)

        critics = ensemble(critic, config.critics, critic_key)
        log_temperature = jnp.log(jnp.float32(config.initial_temperature))
        init = optax.adam(config.learning_rate).init
        return cls(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            log_temperature=log_temperature,
            optimiser_states=(init(actor), init(critics), init(log_temperature)),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        policy = self.actor(self._normalise(observation))
        unit = policy.mode() if key is None else policy.sample_and_log_prob(key)[0]
        return ActionScale(box_actions(self.spaces, "sac")).to_env(unit), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["SAC", dict[str, Float[Array, ""]]]:
        batch, config = jax.tree.map(jnp.asarray, batch), self.config
        norm = self.observation_norm
        if config.normalise_observation:
            norm = norm.update(batch.observation)
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(box_actions(self.spaces, "sac")).to_unit(batch.action)
        target_key, actor_key = jax.random.split(key)
        temperature = jnp.exp(self.log_temperature)

        # Soft Bellman target.
        next_action, next_log_prob = self.actor(following).sample_and_log_prob(target_key)
        next_value = jnp.min(apply_ensemble(self.target_critics, following, next_action), 0)
        next_value -= temperature * next_log_prob
        target = batch.reward + config.discount * ~batch.terminated * next_value

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """J_Q, summed over the critics."""
            values = apply_ensemble(critics, observation, action)
            return 0.5 * jnp.mean(jnp.square(values - target), axis=1).sum(), jnp.mean(values)

        def actor_loss(actor: Actor, critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """J_pi, with the minimum over the critics."""

            def value(action: Float[Array, "batch action"]) -> Float[Array, " batch"]:
                return jnp.min(apply_ensemble(critics, observation, action), 0)

            policy = actor(observation)
            sampled, log_prob = policy.sample_and_log_prob(actor_key)
            loss = jnp.mean(temperature * log_prob - value(sampled))
            loss = imitation_loss(config.imitation, loss, policy.mode(), action, batch.demonstrated, value)
            return loss, jnp.mean(log_prob)

        def temperature_loss(log_temperature: Float[Array, ""], log_prob: Float[Array, ""]) -> Float[Array, ""]:
            """J(alpha), on the logarithm of alpha as is customary."""
            return -log_temperature * (log_prob + self._target_entropy())

        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = self._descend(self.critics, gradient, self.optimiser_states[1])
        (policy_loss, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(self.actor, critics)
        actor, actor_state = self._descend(self.actor, gradient, self.optimiser_states[0])
        gradient = jax.grad(temperature_loss)(self.log_temperature, log_prob)
        log_temperature, temperature_state = self._descend(self.log_temperature, gradient, self.optimiser_states[2])

        agent = replace(
            self,
            actor=actor,
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),  # pyright: ignore[reportArgumentType]
            log_temperature=log_temperature,
            optimiser_states=(actor_state, critic_state, temperature_state),
            observation_norm=norm,
        )
        return agent, {
            "critic_loss": loss,
            "actor_loss": policy_loss,
            "value": value,
            "entropy": -log_prob,
            "temperature": temperature,
        }

    def _descend(self, parameters: Any, gradient: Any, state: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
        change, state = optax.adam(self.config.learning_rate).update(gradient, state)  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state  # pyright: ignore[reportReturnType, reportArgumentType]

    def _target_entropy(self) -> float:
        given = self.config.target_entropy
        return -float(box_actions(self.spaces, "sac").shape[0]) if given is None else given

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation
