"""Two rewards in one learner: how much exploration is good for the task?

`TwoValuePPO` keeps a value function for each reward, as the authors of RND do (Burda et al. 2018, arXiv 1810.12894):
the return of the task ends with the episode, that of the bonus does not. How the two are weighed is fixed in advance.

`EIPO` (Chen et al. 2022, arXiv 2211.07627) weighs them by itself. One policy, pi_EI, maximises task and bonus, subject
to doing as well on the task as a second one, pi_E, which maximises the task alone. The multiplier alpha of that
constraint grows while exploration costs the task something, and falls when it does not. pi_E is what is delivered.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.agents.agent import Agent
from offroad.agents.ppo import PPOConfig, clipped_surrogate, minibatch_epochs, to_env, to_policy
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from offroad.rewards.intrinsic import IntrinsicReward, Sum, weighted_mean
from offroad.rewards.two_rewards import Heads, Learner, Sample, in_one_row, read, standardise


@dataclass(frozen=True)
class TwoValuePPOConfig:
    """The weights are those of RND on Atari."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    extrinsic: float | int = 2.0  # weight of the task's reward, which is at unit scale if `ppo` normalises it
    intrinsic: float | int = 1.0
    intrinsic_discount: float = 0.99
    warm_up: int = 0  # updates at first in which only the bonus learns

    @property
    def rollout(self) -> int:
        return self.ppo.rollout


class TwoValuePPO(Agent):
    """PPO with a value function for the task and one for the bonus, whose return does not end with the episode."""

    learner: Learner
    spaces: Spaces = eqx.field(static=True)
    config: TwoValuePPOConfig = eqx.field(static=True)

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, spaces: Spaces, config: TwoValuePPOConfig, key: Key[Array, ""], *, reward: IntrinsicReward | Sum
    ) -> "TwoValuePPO":
        learner = Learner.create(spaces, config.ppo, reward, 1, 2, key)
        return cls(learner=learner, spaces=spaces, config=config)

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Array, PyTree[Any]]:
        network = self.learner.network
        policy = network.actors[0](network.encoder(self.learner.normalise(observation, self.config.ppo)))
        return to_env(self.spaces.action, policy.mode() if key is None else policy.sample(key)), ()

    def begin_episodes(self) -> "TwoValuePPO":
        return replace(self, learner=self.learner.begin_episodes())

    def update(self, batch: Rollout, key: Key[Array, ""]) -> tuple["TwoValuePPO", dict[str, Float[Array, ""]]]:
        batch, config, ppo = jax.tree.map(jnp.asarray, batch), self.config, self.config.ppo
        pay_key, epochs_key = jax.random.split(key)
        weights = (config.extrinsic, config.intrinsic)
        learner, extrinsic, intrinsic, metrics = self.learner.pay(batch, ppo, weights, pay_key)
        steps, network = batch.transitions, learner.network
        seen = tuple(learner.normalise(x, ppo) for x in (steps.observation, steps.next_observation))
        features, valued = read(network, seen, batch)
        task = valued.advantage(extrinsic, 0, ppo.discount, ppo.gae)
        bonus = valued.endless_advantage(intrinsic, 1, config.intrinsic_discount, ppo.gae)
        action = to_policy(self.spaces.action, steps.action)
        sample = Sample(
            seen[0],
            action,
            network.actors[0](features).log_prob(action),
            (task + bonus,),
            (valued.values[0] + task, valued.values[1] + bonus),
            batch.mask.astype(jnp.float32),
        )
        network, state, found = minibatch_epochs(
            self._loss, network, learner.optimiser_state, in_one_row(sample), (), epochs_key, ppo
        )
        learner = learner.finish(network, state, batch, ppo, config.warm_up)
        return replace(self, learner=learner), metrics | found

    def _loss(self, network: Heads, sample: Sample, memory: Any) -> tuple[Float[Array, ""], dict[str, Array]]:
        ppo = self.config.ppo
        features = network.encoder(sample.observation)
        policy = network.actors[0](features)
        ratio = jnp.exp(policy.log_prob(sample.action) - sample.log_prob)
        advantage = standardise(sample.advantages[0], sample.weight)
        policy_loss = -weighted_mean(clipped_surrogate(ratio, advantage, ppo.clip), sample.weight)
        errors = [
            weighted_mean(jnp.square(value - target), sample.weight)
            for value, target in zip(network.values(features), sample.targets)
        ]
        entropy = weighted_mean(policy.entropy(), sample.weight)
        loss = policy_loss + ppo.value_weight * sum(errors) - ppo.entropy * entropy
        found = {"policy_loss": policy_loss, "value_loss": errors[0], "bonus_value_loss": errors[1]}
        return loss, found | {"entropy": entropy}


@dataclass(frozen=True)
class EIPOConfig:
    """The first `alpha` is that of the official experiments; the rest is ours.

    They move alpha by at most 0.001 in a max stage (four steps with rate 0.005 and clip 0.05), which takes hundreds of
    these stages from 0.5 to 0. Here it is at most 0.1, as short runs have a hundred of them: half a million steps in
    rollouts of 2048. Clipped steps are small steps: the gain of one rollout is mostly noise.
    """

    ppo: PPOConfig = field(default_factory=PPOConfig)
    alpha: float = 0.5  # the multiplier at first
    alpha_learning_rate: float = 10.0
    alpha_clip: float = 0.01  # of the difference of returns that alpha learns from, in units of normalised reward
    intrinsic_discount: float = 0.99
    warm_up: int = 0  # updates at first in which only the bonus learns

    @property
    def rollout(self) -> int:
        return self.ppo.rollout


class EIPO(Agent):
    """Extrinsic-intrinsic policy optimisation. Heads: actors pi_E, pi_EI; critics V_E of pi_E, V_E and V_I of pi_EI.

    Stages alternate from rollout to rollout. In the max stage pi_E acts, and pi_EI climbs
    `r_E + r_I + alpha A_E`; in the min stage pi_EI acts, and pi_E climbs `(1 + alpha) A_E + A_I - r_E - r_I`, both by
    the performance difference lemma on the other policy's data. Besides, the policy that acted improves its own
    objective, and its values are fitted. As in the official code, but for three things: the min stage's value is that
    of `(1 + alpha) r_E + r_I`, as the derivation has it; both policies have an entropy bonus; and alpha follows the
    gradient of the Lagrangian, never below 0, while the sign in the code, as we read it, is the opposite one.
    """

    learner: Learner
    alpha: Float[Array, ""]
    max_stage: Bool[Array, ""]
    spaces: Spaces = eqx.field(static=True)
    config: EIPOConfig = eqx.field(static=True)

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, spaces: Spaces, config: EIPOConfig, key: Key[Array, ""], *, reward: IntrinsicReward | Sum
    ) -> "EIPO":
        learner = Learner.create(spaces, config.ppo, reward, 2, 3, key)
        alpha = jnp.asarray(config.alpha, jnp.float32)
        return cls(learner=learner, alpha=alpha, max_stage=jnp.array(True), spaces=spaces, config=config)

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Array, PyTree[Any]]:
        """Explores with the policy whose stage it is; deterministic actions are those of pi_E."""
        network = self.learner.network
        task, mixed = (
            actor(network.encoder(self.learner.normalise(observation, self.config.ppo))) for actor in network.actors
        )
        if key is None:
            return to_env(self.spaces.action, task.mode()), ()
        action = jnp.where(self.max_stage, task.sample(key), mixed.sample(key))
        return to_env(self.spaces.action, action), ()

    def for_task(self) -> "EIPO":
        """The same agent, which acts by pi_E with a key, too: what EIPO delivers once training is over."""
        return replace(self, max_stage=jnp.array(True))

    def begin_episodes(self) -> "EIPO":
        return replace(self, learner=self.learner.begin_episodes())

    def update(self, batch: Rollout, key: Key[Array, ""]) -> tuple["EIPO", dict[str, Float[Array, ""]]]:
        batch, config, ppo = jax.tree.map(jnp.asarray, batch), self.config, self.config.ppo
        pay_key, epochs_key = jax.random.split(key)
        learner, extrinsic, intrinsic, metrics = self.learner.pay(batch, ppo, (1.0, 1.0), pay_key)
        steps, network = batch.transitions, learner.network
        seen = tuple(learner.normalise(x, ppo) for x in (steps.observation, steps.next_observation))
        features, valued = read(network, seen, batch)

        task = valued.advantage(extrinsic, 0, ppo.discount, ppo.gae)
        mixed_task = valued.advantage(extrinsic, 1, ppo.discount, ppo.gae)
        mixed_bonus = valued.endless_advantage(intrinsic, 2, config.intrinsic_discount, ppo.gae)
        climbed_by_mixed = extrinsic + intrinsic + self.alpha * task  # U_max
        climbed_by_task = (1 + self.alpha) * mixed_task + mixed_bonus - extrinsic - intrinsic  # U_min
        advantages = (
            jnp.where(self.max_stage, task, climbed_by_task),
            jnp.where(self.max_stage, climbed_by_mixed, mixed_task + mixed_bonus),
        )
        targets = tuple(v + a for v, a in zip(valued.values, (task, mixed_task, mixed_bonus)))
        action = to_policy(self.spaces.action, steps.action)
        log_probs = [actor(features).log_prob(action) for actor in network.actors]
        weight = batch.mask.astype(jnp.float32)
        log_prob = jnp.where(self.max_stage, *log_probs)
        sample = Sample(seen[0], action, log_prob, advantages, targets, weight)
        network, state, found = minibatch_epochs(
            self._loss, network, learner.optimiser_state, in_one_row(sample), (), epochs_key, ppo
        )

        # How much better than pi_E is the new pi_EI on the task, by pi_E's own data? Known after max stages only.
        new = network.actors[1](network.encoder(seen[0])).log_prob(action)
        # Less the advantage itself, whose mean is 0 for a perfect value: a policy that stays put gains nothing.
        gain = weighted_mean(clipped_surrogate(jnp.exp(new - log_prob), task, ppo.clip) - task, weight)
        gain = jnp.clip(gain, -config.alpha_clip, config.alpha_clip)
        acting = self.max_stage & (learner.updates >= config.warm_up)
        alpha = jnp.where(acting, next_alpha(self.alpha, gain, config.alpha_learning_rate), self.alpha)
        learner = learner.finish(network, state, batch, ppo, config.warm_up)
        metrics |= found | {"alpha": alpha, "task_gain": jnp.where(self.max_stage, gain, 0.0)}
        return replace(self, learner=learner, alpha=alpha, max_stage=~self.max_stage), metrics

    def _loss(self, network: Heads, sample: Sample, memory: Any) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The clipped objectives of both policies, and the values of the one that acted."""
        ppo, weight = self.config.ppo, sample.weight
        features = network.encoder(sample.observation)
        losses, entropies = [], []
        for actor, advantage in zip(network.actors, sample.advantages):
            policy = actor(features)
            ratio = jnp.exp(policy.log_prob(sample.action) - sample.log_prob)
            losses.append(-weighted_mean(clipped_surrogate(ratio, standardise(advantage, weight), ppo.clip), weight))
            entropies.append(weighted_mean(policy.entropy(), weight))
        errors = [weighted_mean(jnp.square(v - t), weight) for v, t in zip(network.values(features), sample.targets)]
        value_loss = jnp.where(self.max_stage, errors[0], errors[1] + errors[2])
        loss = sum(losses) + ppo.value_weight * value_loss - ppo.entropy * sum(entropies)
        return jnp.asarray(loss), {
            "policy_loss": losses[0],
            "mixed_policy_loss": losses[1],
            "value_loss": value_loss,
            "entropy": entropies[0],
            "mixed_entropy": entropies[1],
        }


def next_alpha(alpha: Float[Array, ""], gain: Float[Array, ""], learning_rate: float) -> Float[Array, ""]:
    """One step down the Lagrangian J_EI + alpha (J_E(pi_EI) - J_E(pi_E)) in alpha, which is not negative.

    `gain` estimates the difference in brackets: where exploring costs the task nothing, alpha falls and the bonus
    weighs more.
    """
    return jnp.maximum(alpha - learning_rate * gain, 0.0)
