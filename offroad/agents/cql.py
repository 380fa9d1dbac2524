"""Conservative Q-learning (Kumar et al. 2020, arXiv 2006.04779): learns from data alone, Box actions.

Soft actor-critic whose critics also learn that what the data does not show is worth less: the soft maximum of their
values over all actions is pushed down, their values of the data's actions are pushed up. `discrete_cql` is for discrete
actions.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import ActionScale, Agent, at_least_one, box_actions
from offroad.agents.sac import Actor
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.nets.critic import Critic, values_of
from offroad.nets.distributions import TanhNormal
from offroad.nets.encoder import Flat
from offroad.nets.ensemble import ensemble
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.relational import EncoderConfig

INSIDE = 1 - 1e-5
"""Data actions are clipped to it before their likelihood under a squashed Gaussian is asked for."""


@dataclass(frozen=True)
class CQLConfig:
    """Defaults are those that the authors advise for locomotion, but for two things: their code clones at first, and
    does not halve the squared error, as is done here, so that the same `weight` counts half as much there.

    Sparse rewards must be shifted in the data, so that failure is worth less than nothing: CORL takes, for D4RL's ant
    mazes, 10 r - 5, with backup_samples 10, lagrange_gap -2.6 (see there) and gap_minimum -200.
    """

    critic_learning_rate: float = 3e-4
    policy_learning_rate: float = 1e-4  # of the temperature, too
    discount: float = 0.99  # gamma, per transition
    polyak: float = 0.005  # tau: how fast the target critics follow
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256, 256)
    critics: int = 2
    layer_norm: bool = False  # in the critics
    target_entropy: float | None = None  # None: minus the number of actions
    initial_temperature: float = 1.0
    weight: float = 5.0  # alpha: of the gap, what is pushed down less what is pushed up
    query: Literal["all", "policy"] = "all"  # push down the soft maximum over all actions, or the policy's mean value
    samples: int = 10  # N: actions per state from each proposal
    conservative_states: int | None = None  # as many of a batch's states have a gap, the first ones; None: all
    backup_samples: int = 1  # the best of so many actions of the policy counts in the target
    # The multiplier of `weight` is then learnt so that the gap becomes this; None keeps it at 1. Here the soft maximum
    # is an estimate of log of the integral of exp Q; code that leaves out the mean's 1 / 3N has thresholds that are
    # log(3N) higher, 3.4 with N = 10.
    lagrange_gap: float | None = None
    multiplier_learning_rate: float = 3e-4
    gap_minimum: float | None = None  # gaps below it, state by state, count as this and are not widened
    clone_updates: int = 0  # at first the policy clones the data; the authors' code: 40,000
    normalise_observation: bool = False  # by the data's mean and deviation, which `train.offline` measures
    encoder: EncoderConfig = field(default_factory=Flat)  # how observations become features


class CQL(Agent):
    actor: Actor
    critics: Critic
    target_critics: Critic
    log_temperature: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    optimiser_states: tuple[PyTree[Array], ...]  # actor, critics, temperature, multiplier
    updates: Int[Array, ""]
    observation_norm: ObservationNorm
    spaces: Spaces = eqx.field(static=True)
    config: CQLConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: CQLConfig, key: Key[Array, ""]) -> "CQL":
        actions = box_actions(spaces, "cql")
        at_least_one(config, "samples", "backup_samples")
        if not 1 <= _states(config) <= config.batch:
            raise OffroadError(
                f"conservative_states is {config.conservative_states}, expected 1 to batch = {config.batch}, or None"
            )
        encoder_key, head_key, critic_key = jax.random.split(key, 3)
        encoder = config.encoder.build(spaces.observation, encoder_key)
        sizes = (encoder.size, *config.hidden, 2 * actions.shape[0])
        actor = Actor(encoder, MLP(sizes, key=head_key, activation="relu", init="uniform"))

        def critic(key: Key[Array, ""]) -> Critic:
            return Critic(spaces.observation, actions, config.encoder, config.hidden, key, config.layer_norm)

        critics = ensemble(critic, config.critics, critic_key)
        log_temperature, log_multiplier = jnp.log(jnp.float32(config.initial_temperature)), jnp.zeros(())
        learnt = (actor, critics, log_temperature, log_multiplier)
        return cls(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            log_temperature=log_temperature,
            log_multiplier=log_multiplier,
            optimiser_states=tuple(optax.adam(rate).init(x) for rate, x in zip(_rates(config), learnt)),  # pyright: ignore[reportArgumentType]
            updates=jnp.zeros((), jnp.int32),
            observation_norm=ObservationNorm.create(spaces.observation),
            spaces=spaces,
            config=config,
        )

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[Float[Array, "batch action"], PyTree[Any]]:
        policy = self.actor(self._normalise(observation))
        return ActionScale(self._actions).to_env(policy.mode() if key is None else policy.sample(key)), memory

    def update(self, batch: Transition, key: Key[Array, ""]) -> tuple["CQL", dict[str, Float[Array, ""]]]:
        config = self.config
        observation, following = self._normalise(batch.observation), self._normalise(batch.next_observation)
        action = ActionScale(self._actions).to_unit(batch.action)
        target_key, query_key, actor_key = jax.random.split(key, 3)
        next_policy = self.actor(following)

        # No entropy in the target. The best action is chosen critic by critic, then the smallest critic counts.
        next_actions = _draw(next_policy, config.backup_samples, target_key)[0]
        next_value = jnp.min(jnp.max(values_of(self.target_critics, following, next_actions), axis=1), axis=0)
        target = batch.reward + config.discount * ~batch.terminated * next_value

        # The gap of some states is an unbiased estimate of that of all, at a fraction of the price.
        few = _states(config)
        some, some_next = jax.tree.map(lambda x: x[:few], (observation, next_policy))
        queried, log_density = propose(config, self.actor(some), some_next, query_key)

        def critic_loss(critics: Critic) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            """CQL(H), with `weight` for alpha, summed over the critics."""
            values = values_of(critics, observation, action[None])[:, 0]
            error = 0.5 * jnp.mean(jnp.square(values - target), axis=1).sum()
            pushed = values_of(critics, some, queried)
            if config.query == "all":
                # The mean over samples of exp Q / density is an unbiased estimate of the integral of exp Q.
                high = jax.nn.logsumexp(pushed - log_density, axis=1) - jnp.log(pushed.shape[1])
            else:
                high = jnp.mean(pushed, axis=1)
            gap = high - values[:, :few]
            if config.gap_minimum is not None:
                gap = jnp.maximum(gap, config.gap_minimum)
            gaps = jnp.mean(gap, axis=1)
            return error + config.weight * multiplier * gaps.sum(), (jnp.mean(gaps), jnp.mean(values))

        def actor_loss(actor: Actor, critics: Critic) -> tuple[Float[Array, ""], Float[Array, ""]]:
            """SAC's loss; in the first `clone_updates` the data's likelihood stands for the critics' values."""
            policy = actor(observation)
            sampled, log_prob = policy.sample_and_log_prob(actor_key)
            value = jnp.min(values_of(critics, observation, sampled[None])[:, 0], 0)
            if config.clone_updates:
                likelihood = policy.log_prob(jnp.clip(action, -INSIDE, INSIDE))
                value = jnp.where(self.updates < config.clone_updates, likelihood, value)
            return jnp.mean(jnp.exp(self.log_temperature) * log_prob - value), jnp.mean(log_prob)

        multiplier = jnp.minimum(jnp.exp(self.log_multiplier), 1e6)
        (loss, (gap, value)), critic_gradient = jax.value_and_grad(critic_loss, has_aux=True)(self.critics)
        critics, critic_state = self._descend(1, self.critics, critic_gradient)
        (policy_loss, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(self.actor, critics)
        actor, actor_state = self._descend(0, self.actor, gradient)
        # SAC's loss of the temperature, on its logarithm, as is customary.
        slope = log_prob + self._target_entropy()
        log_temperature, temperature_state = self._descend(2, self.log_temperature, -slope)
        log_multiplier, multiplier_state = self.log_multiplier, self.optimiser_states[3]
        if config.lagrange_gap is not None:
            # Ascent on multiplier * weight * (gap - lagrange_gap).
            slope = multiplier * config.weight * (gap - config.lagrange_gap)
            log_multiplier, multiplier_state = self._descend(3, log_multiplier, -slope)

        agent = replace(
            self,
            actor=actor,
            critics=critics,
            target_critics=optax.incremental_update(critics, self.target_critics, config.polyak),  # pyright: ignore[reportArgumentType]
            log_temperature=log_temperature,
            log_multiplier=log_multiplier,
            optimiser_states=(actor_state, critic_state, temperature_state, multiplier_state),
            updates=self.updates + 1,
        )
        return agent, {
            "critic_loss": loss,
            "actor_loss": policy_loss,
            "gap": gap,
            "value": value,
            "entropy": -log_prob,
            "temperature": jnp.exp(self.log_temperature),
            "multiplier": multiplier,
        }

    def _descend(self, which: int, parameters: Any, gradient: Any) -> tuple[Any, PyTree[Array]]:
        adam = optax.adam(_rates(self.config)[which])
        change, state = adam.update(gradient, self.optimiser_states[which])  # pyright: ignore[reportArgumentType]
        return optax.apply_updates(parameters, change), state

    def _target_entropy(self) -> float:
        given = self.config.target_entropy
        return -float(self._actions.shape[0]) if given is None else given

    @property
    def _actions(self) -> gym_spaces.Box:
        return box_actions(self.spaces, "cql")

    def _normalise(self, observation: PyTree[Any]) -> PyTree[Any]:
        return self.observation_norm(observation) if self.config.normalise_observation else observation


def propose(
    config: CQLConfig, policy: TanhNormal, next_policy: TanhNormal, key: Key[Array, ""]
) -> tuple[Float[Array, "samples states action"], Float[Array, "samples states"]]:
    """Actions whose values are pushed down, and their log densities: N uniform ones, N of the policy in the state and N
    of the policy in the next state; with `query="policy"` those of the policy in the state alone. No gradient passes.
    """
    uniform_key, now_key, next_key = jax.random.split(key, 3)
    now, now_density = _draw(policy, config.samples, now_key)
    if config.query == "policy":
        return jax.lax.stop_gradient((now, now_density))
    uniform = jax.random.uniform(uniform_key, now.shape, minval=-1, maxval=1)
    after, after_density = _draw(next_policy, config.samples, next_key)
    uniform_density = jnp.full(now_density.shape, -now.shape[-1] * jnp.log(2.0))
    actions = jnp.concatenate([uniform, now, after])
    return jax.lax.stop_gradient((actions, jnp.concatenate([uniform_density, now_density, after_density])))


def _draw(
    policy: TanhNormal, samples: int, key: Key[Array, ""]
) -> tuple[Float[Array, "samples states action"], Float[Array, "samples states"]]:
    return jax.vmap(policy.sample_and_log_prob)(jax.random.split(key, samples))


def _states(config: CQLConfig) -> int:
    return config.batch if config.conservative_states is None else config.conservative_states


def _rates(config: CQLConfig) -> tuple[float, float, float, float]:
    critic, policy = config.critic_learning_rate, config.policy_learning_rate
    return policy, critic, policy, config.multiplier_learning_rate
