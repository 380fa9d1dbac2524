"""What learners with two rewards have in common: heads on a shared encoder, and both returns of a rollout."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from offroad.agents.ppo import PPOConfig, generalised_advantages, head_of, make_optimiser
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from offroad.errors import OffroadError
from offroad.nets.distributions import Categorical, Normal
from offroad.nets.encoder import Encoder
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm, ReturnNorm
from offroad.rewards.curious import rewards_paid
from offroad.rewards.intrinsic import IntrinsicReward, Sum, weighted_mean


class Actor(eqx.Module):
    """Features to a distribution over actions."""

    head: MLP
    log_std: Float[Array, " action"]  # empty for discrete actions

    def __call__(self, features: Float[Array, "*batch size"]) -> Normal | Categorical:
        out = self.head(features)
        return Normal(out, jnp.broadcast_to(self.log_std, out.shape)) if self.log_std.size else Categorical(out)


class Heads(eqx.Module):
    """Policies and value functions on a shared encoder."""

    encoder: Encoder
    actors: tuple[Actor, ...]
    critics: tuple[MLP, ...]

    @classmethod
    def create(cls, spaces: Spaces, config: PPOConfig, actors: int, critics: int, key: Key[Array, ""]) -> "Heads":
        for option in ("recurrent", "critic_only"):
            if getattr(config, option):
                raise OffroadError(
                    f"{option} is {getattr(config, option)}, which learners with several value heads do not have; use "
                    "Curious(PPO.create(...), reward)"
                )
        outputs, log_std = head_of(spaces, config)
        encoder_key, *keys = jax.random.split(key, 1 + actors + critics)
        encoder = config.encoder.build(spaces.observation, encoder_key)

        def mlp(hidden: tuple[int, ...], out: int, scale: float, key: Key[Array, ""]) -> MLP:
            return MLP((encoder.size, *hidden, out), key=key, activation=config.activation, final_scale=scale)

        critic_hidden = config.critic_hidden or config.hidden
        return cls(
            encoder,
            tuple(Actor(mlp(config.hidden, outputs, 0.01, k), log_std) for k in keys[:actors]),
            tuple(mlp(critic_hidden, 1, 1.0, k) for k in keys[actors:]),
        )

    def values(self, features: Float[Array, "*batch size"]) -> tuple[Float[Array, "*batch"], ...]:
        return tuple(critic(features)[..., 0] for critic in self.critics)


class Sample(eqx.Module):
    """What the losses need of each step, `[1, steps, ...]`. Advantages, targets and their weights: one a head."""

    observation: PyTree[Any]
    action: Array
    log_prob: Array  # of the policy that acted
    advantages: tuple[Array, ...]
    targets: tuple[Array, ...]
    weight: Array


class Valued(eqx.Module):
    """A rollout as the values of the present network see it, a tuple entry for each critic."""

    values: tuple[Float[Array, "T N"], ...]
    following: tuple[Float[Array, "T N"], ...]  # of the observation that the action led to, be it a final one
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    mask: Bool[Array, "T N"]

    def advantage(self, reward: Float[Array, "T N"], critic: int, discount: float, gae: float) -> Float[Array, "T N"]:
        """Of the task's return, which ends with the episode."""
        value, following = self.values[critic], self.following[critic]
        ended = self.terminated | self.truncated | ~self.mask
        return generalised_advantages(reward, value, following, self.terminated, ended, discount, gae)

    def endless_advantage(
        self, reward: Float[Array, "T N"], critic: int, discount: float, gae: float
    ) -> Float[Array, "T N"]:
        """Of a return that runs on into the next episode: dying costs what there is to explore, no more.

        An episode's last step is followed by the next episode's first observation. The fake step that NEXT_STEP
        autoreset puts between the two is left out: its observation is the final one of the old episode, and no time
        passes in it. 0 there.
        """

        def backwards(later: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            reward, value, mask = now
            following, advantage = later
            advantage = reward + discount * (following + gae * advantage) - value
            later = jax.tree.map(lambda new, old: jnp.where(mask, new, old), (value, advantage), later)
            return later, jnp.where(mask, advantage, 0.0)

        value, following = self.values[critic], self.following[critic]
        # Where a rollout ends with an episode the next one is not known yet: its final observation stands for it.
        last = (following[-1], jnp.zeros_like(following[-1]))
        return jax.lax.scan(backwards, last, (reward, value, self.mask), reverse=True)[1]


def read(network: Heads, normalised: tuple[Any, Any], batch: Rollout) -> tuple[Array, Valued]:
    """Features of the observations, and the rollout with all values."""
    steps = batch.transitions
    features = network.encoder(normalised[0])
    following = network.values(network.encoder(normalised[1]))
    return features, Valued(network.values(features), following, steps.terminated, steps.truncated, batch.mask)


def standardise(advantage: Float[Array, "*batch"], weight: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """At mean 0 and unit deviation over what has weight."""
    centred = advantage - weighted_mean(advantage, weight)
    return centred / (jnp.sqrt(weighted_mean(jnp.square(centred), weight)) + 1e-8)


def in_one_row(sample: Sample) -> Sample:
    """`[T, N, ...]` as one row of steps, `[1, T N, ...]`: without memory their order says nothing."""
    return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), sample)


class Learner(eqx.Module):
    """What both learners hold and do alike."""

    network: Heads
    optimiser_state: PyTree[Array]
    observation_norm: ObservationNorm
    return_norm: ReturnNorm
    reward: IntrinsicReward | Sum
    updates: Int[Array, ""]

    @classmethod
    def create(
        cls,
        spaces: Spaces,
        config: PPOConfig,
        reward: IntrinsicReward | Sum,
        actors: int,
        critics: int,
        key: Key[Array, ""],
    ) -> "Learner":
        network = Heads.create(spaces, config, actors, critics, key)
        return cls(
            network=network,
            optimiser_state=make_optimiser(config).init(network),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            return_norm=ReturnNorm.create(spaces.num_envs),
            reward=reward,
            updates=jnp.zeros((), jnp.int32),
        )

    def begin_episodes(self) -> "Learner":
        num_envs = self.reward.spaces.num_envs
        return replace(self, return_norm=self.return_norm.begin(), reward=self.reward.begin(num_envs))

    def normalise(self, observation: PyTree[Any], config: PPOConfig) -> PyTree[Any]:
        return self.observation_norm(observation) if config.normalise_observation else observation

    def pay(
        self, batch: Rollout, config: PPOConfig, weights: tuple[float | int, float | int], key: Key[Array, ""]
    ) -> tuple["Learner", Array, Array, dict[str, Array]]:
        """Both rewards of a rollout at unit scale, times their weights, and a bonus that has learnt from it."""
        steps = batch.transitions
        pay_key, reward_key = jax.random.split(key)
        bonus, reward = self.reward.pay(steps, batch.mask, pay_key)
        reward, found = reward.update(steps, batch.mask, reward_key)
        done = steps.terminated | steps.truncated
        return_norm = self.return_norm.update(steps.reward, done, config.discount, batch.mask)
        scaled = jnp.clip(steps.reward * return_norm.scale, -10, 10) if config.normalise_reward else steps.reward
        extrinsic, intrinsic = weights[0] * scaled, weights[1] * bonus
        metrics = {f"intrinsic/{name}": value for name, value in found.items()}
        metrics |= rewards_paid(extrinsic, intrinsic, batch.mask)
        return replace(self, reward=reward, return_norm=return_norm), extrinsic, intrinsic, metrics

    def finish(
        self, network: Heads, state: PyTree[Array], batch: Rollout, config: PPOConfig, warm_up: int
    ) -> "Learner":
        """After an update's epochs. In the first `warm_up` updates the policy stays as it is."""
        norm = self.observation_norm.update(batch.transitions.observation, batch.mask)
        new = (network, state, norm, self.reward)
        old = (self.network, self.optimiser_state, self.observation_norm, self.reward.forget_scale())
        network, state, norm, reward = jax.tree.map(lambda a, b: jnp.where(self.updates >= warm_up, a, b), new, old)
        learner = replace(self, network=network, optimiser_state=state, observation_norm=norm, reward=reward)
        return replace(learner, updates=self.updates + 1)
