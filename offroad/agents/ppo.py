"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

Collect a rollout with the current policy, estimate advantages with GAE (Schulman et al. 2016, arXiv 1506.02438), then
take several epochs of clipped policy-gradient steps on it. Continuous and discrete actions, any
observation that an encoder reads, with or without a recurrent core. The whole update, all epochs and minibatches, is
one compiled call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.agents.agent import ActionScale, Agent
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout
from offroad.errors import OffroadError, unknown
from offroad.nets.distributions import Categorical, Normal
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm, ReturnNorm
from offroad.nets.recurrent import GRU
from offroad.nets.relational import EncoderConfig


@dataclass(frozen=True)
class PPOConfig:
    """Defaults are Stable-Baselines3's but for normalisation, which it leaves to a wrapper."""

    rollout: int = 2048  # steps of each environment between updates (T)
    epochs: int = 10  # passes over each rollout
    minibatch: int = 64  # transitions per gradient step
    learning_rate: float = 3e-4
    discount: float = 0.99  # gamma
    gae: float = 0.95  # lambda: 0 trusts the critic, 1 the returns
    clip: float = 0.2  # epsilon: how far the policy may move on one rollout
    entropy: float = 0.0  # weight of the entropy bonus (c2)
    value_weight: float = 0.5  # weight of the critic's loss (c1)
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)
    critic_hidden: tuple[int, ...] = ()  # empty: as `hidden`
    activation: str = "tanh"
    initial_std: float = 1.0  # of the Gaussian policy, in units of half the action range
    recurrent: int = 0  # width of a GRU between encoder and heads; 0: no memory
    critic_only: tuple[str, ...] = ()  # entries of a Dict observation that the policy cannot see (Pinto et al. 2017)
    normalise_observation: bool = True
    normalise_reward: bool = True  # divide by the running std of the discounted return
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class ActorCritic(eqx.Module):
    """Encoder, optional GRU, and the two heads. `log_std` is empty for discrete actions.

    `privileged` encodes what only the critic may see (asymmetric actor-critic, Pinto et al. 2017, arXiv 1710.06542).
    """

    encoder: Encoder
    privileged: Encoder | None
    core: GRU | None
    actor: MLP
    critic: MLP
    log_std: Float[Array, " action"]

    def features(
        self, observation: PyTree[Any], memory: PyTree[Any], reset: Bool[Array, "T N"]
    ) -> tuple[Float[Array, "T N feature"], PyTree[Any]]:
        """Features of `T` consecutive steps; `reset[t]` clears the memory before step `t`."""
        encoded = self.encoder(observation)
        if self.core is None:
            return encoded, memory
        memory, out = self.core(memory, encoded, reset)
        return out, memory

    def policy(self, features: Float[Array, "*batch feature"]) -> Normal | Categorical:
        head = self.actor(features)
        return Normal(head, jnp.broadcast_to(self.log_std, head.shape)) if self.log_std.size else Categorical(head)

    def value(self, features: Float[Array, "*batch feature"], observation: PyTree[Any]) -> Float[Array, "*batch"]:
        if self.privileged is not None:
            features = jnp.concatenate([features, self.privileged(observation)], -1)
        return self.critic(features)[..., 0]


class _Sample(eqx.Module):
    """What the losses need of each step, computed once before the epochs."""

    observation: PyTree[Any]
    action: Array
    log_prob: Array
    advantage: Array
    target: Array
    weight: Array
    reset: Array


class PPO(Agent):
    network: ActorCritic
    optimiser_state: PyTree[Array]
    observation_norm: ObservationNorm
    return_norm: ReturnNorm
    spaces: Spaces = eqx.field(static=True)
    config: PPOConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: PPOConfig, key: Key[Array, ""]) -> "PPO":
        size, log_std = head_of(spaces, config)
        encoder_key, privileged_key, core_key, actor_key, critic_key = jax.random.split(key, 5)
        seen, hidden = _split(spaces.observation, config.critic_only)
        encoder = config.encoder.build(seen, encoder_key)
        privileged = config.encoder.build(hidden, privileged_key) if hidden else None
        core = GRU(encoder.size, config.recurrent, key=core_key) if config.recurrent else None
        width = config.recurrent or encoder.size
        actor, critic = config.hidden, config.critic_hidden or config.hidden
        network = ActorCritic(
            encoder,
            privileged,
            core,
            MLP((width, *actor, size), key=actor_key, activation=config.activation, final_scale=0.01),
            MLP(
                (width + (privileged.size if privileged else 0), *critic, 1),
                key=critic_key,
                activation=config.activation,
                final_scale=1.0,
            ),
            log_std,
        )
        return cls(
            network=network,
            optimiser_state=make_optimiser(config).init(network),  # pyright: ignore[reportArgumentType]
            observation_norm=ObservationNorm.create(spaces.observation),
            return_norm=ReturnNorm.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )

    def initial_memory(self, num_envs: int) -> PyTree[Any]:
        return () if self.network.core is None else self.network.core.initial(num_envs)

    def begin_episodes(self) -> "PPO":
        return replace(self, return_norm=self.return_norm.begin())

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Array, PyTree[Any]]:
        if self.config.critic_only:
            observation = {name: x for name, x in observation.items() if name not in self.config.critic_only}
        one_step = jax.tree.map(lambda x: jnp.asarray(x)[None], self._normalise(observation))
        num_envs = jax.tree.leaves(one_step)[0].shape[1]
        features, memory = self.network.features(one_step, memory, jnp.zeros((1, num_envs), bool))
        policy = self.network.policy(features[0])
        return to_env(self.spaces.action, policy.mode() if key is None else policy.sample(key)), memory

    def update(self, batch: Rollout, key: Key[Array, ""]) -> tuple["PPO", dict[str, Float[Array, ""]]]:
        batch, config = jax.tree.map(jnp.asarray, batch), self.config
        steps = batch.transitions
        done = steps.terminated | steps.truncated
        weight = batch.mask.astype(jnp.float32)
        return_norm = self.return_norm.update(steps.reward, done, config.discount, batch.mask)
        reward = jnp.clip(steps.reward * return_norm.scale, -10, 10) if config.normalise_reward else steps.reward

        # The policy of this rollout is the present one, so its log-probabilities and values are computed here, in one
        # batched pass, instead of step by step while acting.
        observation, following = self._normalise(steps.observation), self._normalise(steps.next_observation)
        ended = done | ~batch.mask
        reset = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])
        features, _ = self.network.features(observation, batch.memory, reset)
        action = to_policy(self.spaces.action, steps.action)
        value = self.network.value(features, observation)
        next_value = self.network.value(self._following_features(features, following), following)
        advantage = generalised_advantages(
            reward, value, next_value, steps.terminated, ended, config.discount, config.gae
        )
        sample = _Sample(
            observation,
            action,
            self.network.policy(features).log_prob(action),
            advantage,
            advantage + value,
            weight,
            reset,
        )
        # [T, N] -> [time, sequence]: without memory every step is a sequence of its own.
        if self.network.core is None:
            sample = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), sample)
        network, optimiser_state, metrics = minibatch_epochs(
            self._loss, self.network, self.optimiser_state, sample, batch.memory, key, config
        )

        residual = advantage * weight
        variance = jnp.var(sample.target, where=sample.weight > 0)
        metrics["explained_variance"] = 1 - jnp.mean(jnp.square(residual)) / jnp.maximum(variance, 1e-8)
        metrics["std"] = jnp.mean(jnp.exp(network.log_std)) if network.log_std.size else jnp.zeros(())
        norm = self.observation_norm
        if config.normalise_observation:
            norm = norm.update(steps.observation, batch.mask)
        agent = replace(
            self,
            network=network,
            optimiser_state=optimiser_state,
            observation_norm=norm,
            return_norm=return_norm,
        )
        return agent, metrics

    def _loss(
        self, network: ActorCritic, sample: _Sample, memory: PyTree[Any]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """L^{CLIP+VF+S}, equation 9 of the paper, with the sign of a loss."""
        config = self.config

        def mean(x: Array) -> Array:
            return jnp.sum(x * sample.weight) / jnp.maximum(jnp.sum(sample.weight), 1)

        features, _ = network.features(sample.observation, memory, sample.reset)
        policy = network.policy(features)
        advantage = sample.advantage - mean(sample.advantage)
        advantage /= jnp.sqrt(mean(jnp.square(advantage))) + 1e-8
        log_ratio = policy.log_prob(sample.action) - sample.log_prob
        ratio = jnp.exp(log_ratio)
        policy_loss = -mean(clipped_surrogate(ratio, advantage, config.clip))
        value_loss = mean(jnp.square(network.value(features, sample.observation) - sample.target))
        entropy = mean(policy.entropy())
        loss = policy_loss + config.value_weight * value_loss - config.entropy * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean((jnp.abs(ratio - 1) > config.clip).astype(jnp.float32)),
        }

    def _following_features(self, features: Array, following: PyTree[Any]) -> Array:
        """Features of `next_observation`, one step of memory after each of `features`."""
        encoded = self.network.encoder(following)
        if self.network.core is None:
            return encoded
        time, num_envs = features.shape[:2]
        flat = encoded.reshape(1, time * num_envs, -1)
        _, out = self.network.core(features.reshape(time * num_envs, -1), flat, jnp.zeros(flat.shape[:2], bool))
        return out.reshape(time, num_envs, -1)

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def _split(space: gym_spaces.Space, critic_only: tuple[str, ...]) -> tuple[gym_spaces.Space, gym_spaces.Space | None]:
    """What both see, and what only the critic sees."""
    if not critic_only:
        return space, None
    if not isinstance(space, gym_spaces.Dict):
        raise OffroadError(f"critic_only is {critic_only}, but the observation space is no Dict: {space}")
    for name in critic_only:
        if name not in space.spaces:
            raise unknown("observation in critic_only", name, space.spaces)
    parts = space.spaces.items()
    seen = {name: part for name, part in parts if name not in critic_only}
    return gym_spaces.Dict(seen), gym_spaces.Dict({name: part for name, part in parts if name in critic_only})


def head_of(spaces: Spaces, config: PPOConfig) -> tuple[int, Float[Array, " action"]]:
    """Outputs of the policy's head and its initial `log_std`. Raises `OffroadError` if PPO cannot work like that."""
    match spaces.action:
        case gym_spaces.Box(shape=(size,)):
            log_std = jnp.full(size, jnp.log(config.initial_std), jnp.float32)
        case gym_spaces.Discrete():
            size, log_std = int(spaces.action.n), jnp.zeros(0)
        case _:
            raise OffroadError(f"ppo acts in Box (one-dimensional) and Discrete spaces, not in {spaces.action}")
    batch = config.rollout * spaces.num_envs
    unit = config.rollout if config.recurrent else 1  # a recurrent minibatch is made of whole sequences
    if batch % config.minibatch or config.minibatch % unit:
        raise OffroadError(
            f"ppo cannot cut a batch of rollout {config.rollout} x {spaces.num_envs} environments = {batch} "
            f"transitions into minibatches of {config.minibatch}"
            + (f" made of whole sequences of {unit}" if config.recurrent else "")
            + "; choose a minibatch that divides it"
        )
    return size, log_std


def generalised_advantages(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    ended: Bool[Array, "T N"],
    discount: float,
    gae: float,
) -> Float[Array, "T N"]:
    """Generalised advantage estimates (arXiv 1506.02438).

    `next_value` is bootstrapped unless the episode terminated; the sum over the future stops where it `ended`.
    """
    delta = reward + discount * next_value * ~terminated - value

    def backwards(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = step
        advantage = delta + discount * gae * later * ~ended
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros_like(reward[0]), (delta, ended), reverse=True)
    return advantages


def clipped_surrogate(
    ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], clip: float
) -> Float[Array, "*batch"]:
    """What L^CLIP is the mean of: no gain from moving the policy by more than `clip` on one rollout."""
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def minibatch_epochs(
    loss: Callable[[Any, Any, Any], tuple[Float[Array, ""], dict[str, Array]]],
    network: eqx.Module,
    state: PyTree[Array],
    sample: PyTree[Array],
    memory: PyTree[Any],
    key: Key[Array, ""],
    config: PPOConfig,
) -> tuple[Any, PyTree[Array], dict[str, Array]]:
    """All epochs of minibatch steps on one rollout: `loss(network, part of sample, its memory) -> (scalar, metrics)`.

    `sample` has leaves `[time, sequence, ...]`, `memory` `[sequence, ...]`; a minibatch is made of whole sequences.
    """
    time, sequences = jax.tree.leaves(sample)[0].shape[:2]
    per_minibatch = config.minibatch // time
    optimiser = make_optimiser(config)

    def minibatch_step(carry: Any, index: Array) -> tuple[Any, dict[str, Array]]:
        network, state = carry
        part = jax.tree.map(lambda x: x[:, index], sample)
        start = jax.tree.map(lambda x: x[index], memory)
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(network, part, start)
        change, state = optimiser.update(gradient, state, network)
        return (optax.apply_updates(network, change), state), metrics

    def epoch(carry: Any, key: Key[Array, ""]) -> tuple[Any, dict[str, Array]]:
        order = jax.random.permutation(key, sequences).reshape(-1, per_minibatch)
        return jax.lax.scan(minibatch_step, carry, order)

    (network, state), metrics = jax.lax.scan(epoch, (network, state), jax.random.split(key, config.epochs))
    return network, state, jax.tree.map(jnp.mean, metrics)


def to_env(space: gym_spaces.Space, action: Array) -> Array:
    """What a policy's distribution gives in the environment's units."""
    if isinstance(space, gym_spaces.Box):
        return ActionScale(space).to_env(action)
    return action + int(space.start)  # pyright: ignore[reportAttributeAccessIssue]


def to_policy(space: gym_spaces.Space, action: Array) -> Array:
    """The inverse of `to_env`."""
    if isinstance(space, gym_spaces.Box):
        return ActionScale(space).to_unit(action)
    return action - int(space.start)  # pyright: ignore[reportAttributeAccessIssue]


def make_optimiser(config: PPOConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate, eps=1e-5))
