"""Bootstrapping error accumulation reduction, BEAR (Kumar et al. 2019, arXiv 1906.00949): learns from data alone.

Actor-critic for Box actions whose policy may choose among the actions that the data's behaviour shows, but no others:
the maximum mean discrepancy (MMD, Gretton et al. 2012) between a few actions of both is held below a threshold, by a
multiplier that is learnt. The behaviour is modelled by a conditional variational autoencoder, trained alongside.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, at_least_one, box_actions
from offroad.agents.sac import Actor
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.nets.critic import Critic, values_of
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.ensemble import ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig

NEAR = 0.5
"""Noise is clipped to it in samples that are compared, those of the behaviour and of the policy, as in the authors'
code: what is compared is the middle of both distributions."""


@dataclass(frozen=True)
class BEARConfig:
    """Rates, batch and policy are those of D4RL's benchmark code, threshold, targets and multiplier also the authors'.

    Sizes are such that a CPU can bear them: in both codes the behaviour's networks are (750, 750), and D4RL's
    benchmark takes 100 samples for the discrepancy, with a Gaussian kernel of bandwidth 50.
    """

    critic_learning_rate: float = 3e-4
    policy_learning_rate: float = 1e-4
    behaviour_learning_rate: float = 1e-3  # the authors'; D4RL's benchmark: 3e-4
    multiplier_learning_rate: float = 1e-3
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # tau: how fast the targets follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    behaviour_hidden: tuple[int, ...] = (256, 256)  # of the autoencoder's two halves
    behaviour_kl: float = 0.5  # weight of the mean KL beside the mean squared error; a large one merges modes
    critics: int = 2
    pessimism: float = 0.75  # lambda: weight of the smallest critic's value in targets, the rest is the largest one's
    backup_samples: int = 10  # the best of so many actions of the policy counts in targets, and is played
    samples: int = 5  # of the policy and of the behaviour, for the discrepancy; the authors advise 5
    kernel: Literal["laplacian", "gaussian"] = "laplacian"
    bandwidth: float = 20.0  # sigma: kernels are exp(-|x - y| / 2 sigma) and exp(-|x - y|^2 / 2 sigma)
    threshold: float = 0.05  # the discrepancy that is allowed
    match_updates: int = 0  # at first the policy only matches the behaviour; the authors' commands: 20,000
    layer_norm: bool = False  # in the critics
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class Behaviour(eqx.Module):
    """Conditional variational autoencoder of actions in [-1, 1] given the observation, with a standard normal prior."""

    encoder: Encoder
    inner: MLP  # observation and action -> mean and log std of the latent
    outer: MLP  # observation and latent -> action before the tanh

    def encode(
        self, observation: PyTree[Any], action: Float[Array, "batch action"]
    ) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        """Mean and log standard deviation of the latent."""
        out = self.inner(jnp.concatenate([self.encoder(observation), action], -1))
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_std, -4, 15)

    def decode(self, observation: PyTree[Any], latent: Float[Array, "*some batch latent"]) -> Float[Array, "..."]:
        """Actions before the tanh, with the latent's axes."""
        features = self.encoder(observation)
        features = jnp.broadcast_to(features, (*latent.shape[:-1], features.shape[-1]))
        return self.outer(jnp.concatenate([features, latent], -1))

    def loss(
        self, observation: PyTree[Any], action: Float[Array, "batch action"], weight: float | int, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """Squared error of the decoded action plus `weight` times the KL divergence from the prior, both as means over
        dimensions."""
        mean, log_std = self.encode(observation, action)
        latent = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        error = jnp.mean(jnp.square(jnp.tanh(self.decode(observation, latent)) - action))
        kl = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std
        return error + weight * jnp.mean(kl)


def mmd(
    x: Float[Array, "n batch action"],
    y: Float[Array, "m batch action"],
    kernel: Literal["laplacian", "gaussian"] = "laplacian",
    bandwidth: float | int = 20.0,
) -> Float[Array, " batch"]:
    """The maximum mean discrepancy of two samples, for every state: the root of
    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), over all pairs.

    Equal samples give 0.001, for the root of 0 has no gradient.
    """

    def mean(a: Float[Array, "n batch action"], b: Float[Array, "m batch action"]) -> Float[Array, " batch"]:
        difference = a[:, None] - b[None]
        size = jnp.abs(difference) if kernel == "laplacian" else jnp.square(difference)
        return jnp.mean(jnp.exp(-jnp.sum(size, -1) / (2 * bandwidth)), axis=(0, 1))

    return jnp.sqrt(jnp.maximum(mean(x, x) + mean(y, y) - 2 * mean(x, y), 0) + 1e-6)


class BEAR(Agent):
    actor: Actor
    target_actor: Actor
    critics: Critic
    target_critics: Critic
    behaviour: Behaviour
    log_multiplier: Float[Array, ""]
    optimiser_states: tuple[PyTree[Array], ...]  # actor, critics, behaviour, multiplier
    updates: Int[Array, ""]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: BEARConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: BEARConfig, key: Key[Array, ""]) -> "BEAR":
        actions = box_actions(spaces, "bear")
        at_least_one(config, "samples", "backup_samples")
        size, latents = actions.shape[0], 2 * actions.shape[0]
        actor_key, head_key, critic_key, encoder_key, inner_key, outer_key = jax.random.split(key, 6)

        def mlp(sizes: tuple[int, ...], key: Key[Array, ""]) -> MLP:
            return MLP(sizes, key=key, activation="relu", init="uniform")

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key, config.layer_norm)

        encoder = config.encoder.build(spaces.observation, actor_key)
        actor = Actor(encoder, mlp((encoder.size, *config.hidden, 2 * size), head_key))
        critics = ensemble(critic, config.critics, critic_key)
        encoder = config.encoder.build(spaces.observation, encoder_key)
        inner = mlp((encoder.size + size, *config.behaviour_hidden, 2 * latents), inner_key)
        outer = mlp((encoder.size + latents, *config.behaviour_hidden, size), outer_key)
        learnt = (actor, critics, Behaviour(encoder, inner, outer), jnp.zeros(()))
        return cls(
            actor=actor,
            target_actor=jax.tree.map(jnp.copy, actor),
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            behaviour=learnt[2],
            log_multiplier=learnt[3],
            optimiser_states=tuple(optax.adam(rate).init(x) for rate, x in zip(_rates(config), learnt)),  # pyright: ignore[reportArgumentType]
            updates=jnp.zeros((), jnp.int32),
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        """The best of the policy's samples by the first critic; without a key their noise is always the same."""
        observation, samples = self._normalise(observation), self.config.backup_samples
        policy = self.actor(observation)
        if key is None:
            noise = np.random.default_rng(0).standard_normal((samples, 1, policy.mean.shape[-1])).astype(np.float32)
        else:
            noise = jax.random.normal(key, (samples, *policy.mean.shape))
        actions = jnp.tanh(policy.mean + jnp.exp(policy.log_std) * noise)
        values = values_of(self.critics, observation, actions)[0]
        best = jax.nn.one_hot(jnp.argmax(values, 0), samples, axis=0)
        return ActionScale(self._actions).to_env(jnp.sum(best[..., None] * actions, 0)), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["BEAR", dict[str, Float[Array, ""]]]:
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(self._actions).to_unit(batch.action)
        behaviour_key, target_key, shown_key, own_key = jax.random.split(key, 4)

        # Of each action all critics are mixed, then the best action counts.
        next_policy = self.target_actor(following)
        noise = jax.random.normal(target_key, (config.backup_samples, *action.shape))
        next_actions = jnp.tanh(next_policy.mean + jnp.exp(next_policy.log_std) * noise)
        values, low = values_of(self.target_critics, following, next_actions), config.pessimism
        next_value = jnp.max(low * jnp.min(values, 0) + (1 - low) * jnp.max(values, 0), axis=0)
        target = batch.reward + config.discount * ~batch.terminated * next_value

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The squared error, summed over the critics."""
            values = values_of(critics, observation, action[None])[:, 0]
            return jnp.mean(jnp.square(values - target), axis=1).sum(), jnp.mean(values)

        def actor_loss(actor: Actor) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """The Lagrangian: minus the smallest critic's value, plus the multiplier times the discrepancy, which is of
            actions before the tanh, where those at their bounds still have a gradient."""
            policy = actor(observation)
            noise = jnp.clip(jax.random.normal(own_key, (config.samples, *action.shape)), -NEAR, NEAR)
            own = policy.mean + jnp.exp(policy.log_std) * noise
            apart = jnp.mean(mmd(own, shown, config.kernel, config.bandwidth))
            value = jnp.mean(jnp.min(values_of(critics, observation, jnp.tanh(own)), 0))
            value = jnp.where(self.updates < config.match_updates, 0.0, value)
            return jnp.exp(self.log_multiplier) * apart - value, apart

        reconstruction, gradient = jax.value_and_grad(Behaviour.loss)(
            self.behaviour, observation, action, config.behaviour_kl, behaviour_key
        )
        behaviour, behaviour_state = self._descend(2, self.behaviour, gradient)
        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = self._descend(1, self.critics, gradient)

        latents = 2 * action.shape[-1]
        latent = jax.random.normal(shown_key, (config.samples, action.shape[0], latents))
        shown = behaviour.decode(observation, jnp.clip(latent, -NEAR, NEAR))
        (_, apart), gradient = jax.value_and_grad(actor_loss, has_aux=True)(self.actor)
        actor, actor_state = self._descend(0, self.actor, gradient)
        # Dual ascent: the multiplier grows while the discrepancy is above what is allowed.
        slope = jnp.exp(self.log_multiplier) * (apart - config.threshold)
        log_multiplier, multiplier_state = self._descend(3, self.log_multiplier, -slope)

        agent = replace(
            self,
            actor=actor,
            target_actor=optax.incremental_update(actor, self.target_actor, config.polyak),  # pyright: ignore[reportArgumentType]
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),  # pyright: ignore[reportArgumentType]
            behaviour=behaviour,
            log_multiplier=jnp.clip(log_multiplier, -5, 10),
            optimiser_states=(actor_state, critic_state, behaviour_state, multiplier_state),
            updates=self.updates + 1,
        )
        return agent, {
            "critic_loss": loss,
            "behaviour_loss": reconstruction,
            "value": value,
            "discrepancy": apart,
            "multiplier": jnp.exp(self.log_multiplier),
        }

    def _descend(self, which: int, parameters: Any, gradient: Any) -> tuple[Any, PyTree[Array]]:
        adam = optax.adam(_rates(self.config)[which])
        change, state = adam.update(gradient, self.optimiser_states[which])  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "bear")

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _rates(config: BEARConfig) -> tuple[float, float, float, float]:
    rates = config.policy_learning_rate, config.critic_learning_rate, config.behaviour_learning_rate
    return *rates, config.multiplier_learning_rate
