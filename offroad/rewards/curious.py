"""Curiosity for any agent of the library: the agent, its intrinsic reward, and how the two rewards are mixed."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import Agent
from offroad.data.spaces import Spaces
from offroad.data.transitions import Rollout, Transition
from offroad.errors import OffroadError
from offroad.rewards.intrinsic import IntrinsicReward, Sum, check_spaces


@dataclass(frozen=True)
class CuriousConfig:
    """`agent` is the config of the agent inside; trainers read their settings from it."""

    agent: Any
    reward: Any
    extrinsic: float | int
    intrinsic: float | int
    warm_up: int

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "agent"), name)


class Curious(Agent):
    """`Curious(PPO.create(...), ICM.create(...), extrinsic=0.0)`: an agent whose reward is
    `extrinsic * reward + intrinsic * bonus`.

    It acts as the agent inside. `update` pays the bonus, teaches the reward's model and hands the mixture to that
    agent. In the first `warm_up` updates only the reward learns: its first bonuses are many times larger than later
    ones and mean nothing. With PPO they are rollouts of a policy that is still random.

    With off-policy agents the bonus of a batch is paid afresh at every update, so it is never out of date. A reward
    with a memory of episodes cannot do that: put an `IntrinsicRewardEnv` around the environment instead.
    """

    agent: Agent
    reward: IntrinsicReward | Sum
    extrinsic: float | int = eqx.field(static=True, default=1.0)
    intrinsic: float | int = eqx.field(static=True, default=1.0)
    warm_up: int = eqx.field(static=True, default=0)
    updates: Int[Array, ""] = eqx.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    def __check_init__(self):
        check_spaces(self.reward, self.agent.spaces, "the agent")

    @classmethod
    def create(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        spaces: Spaces,
        config: CuriousConfig,
        key: Key[Array, ""],
        *,
        agent: type[Agent],
        reward: type[IntrinsicReward],
    ) -> "Curious":
        """`agent` and `reward` of these kinds, created with the configs inside `config`."""
        agent_key, reward_key = jax.random.split(key)
        return cls(  # pyright: ignore[reportCallIssue]  (spaces and config are properties)
            agent=agent.create(spaces, config.agent, agent_key),
            reward=reward.create(spaces, config.reward, reward_key),
            extrinsic=config.extrinsic,
            intrinsic=config.intrinsic,
            warm_up=config.warm_up,
        )

    @property
    def spaces(self) -> Spaces:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.agent.spaces

    @property
    def config(self) -> CuriousConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        return CuriousConfig(self.agent.config, self.reward.config, self.extrinsic, self.intrinsic, self.warm_up)

    def initial_memory(self, num_envs: int) -> PyTree[Any]:
        return self.agent.initial_memory(num_envs)

    def begin_episodes(self) -> "Curious":
        return replace(self, agent=self.agent.begin_episodes(), reward=self.reward.begin(self.reward.spaces.num_envs))

    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[PyTree[Any], PyTree[Any]]:
        return self.agent.act(observation, key, memory)

    def update(self, batch: Rollout | Transition, key: Key[Array, ""]) -> tuple["Curious", dict[str, Float[Array, ""]]]:
        batch = jax.tree.map(jnp.asarray, batch)
        pay_key, reward_key, agent_key = jax.random.split(key, 3)
        if isinstance(batch, Rollout):
            steps, mask = batch.transitions, batch.mask
            bonus, reward = self.reward.pay(steps, mask, pay_key)
        else:
            steps = jax.tree.map(lambda x: x[None], batch)
            mask = jnp.ones(steps.reward.shape, bool)
            bonus, reward = pay_unordered(self.reward, steps, pay_key)
        reward, found = reward.update(steps, mask, reward_key)
        extrinsic = self.extrinsic * steps.reward if self.extrinsic else jnp.zeros_like(bonus)
        intrinsic = self.intrinsic * bonus
        mixed = extrinsic + intrinsic
        if isinstance(batch, Rollout):
            batch = eqx.tree_at(lambda b: b.transitions.reward, batch, mixed)
        else:
            batch = eqx.tree_at(lambda b: b.reward, batch, mixed[0])
        learnt, metrics = self.agent.update(batch, agent_key)
        warm = self.updates >= self.warm_up
        agent = jax.tree.map(lambda new, old: jnp.where(warm, new, old), learnt, self.agent)
        reward = jax.tree.map(lambda kept, forgot: jnp.where(warm, kept, forgot), reward, reward.forget_scale())
        metrics |= {f"intrinsic/{name}": value for name, value in found.items()}
        metrics |= rewards_paid(extrinsic, intrinsic, mask)
        return replace(self, agent=agent, reward=reward, updates=self.updates + 1), metrics


def rewards_paid(
    extrinsic: Float[Array, "T N"], intrinsic: Float[Array, "T N"], mask: Any
) -> dict[str, Float[Array, ""]]:
    """Metrics: the mean bonus, and its share of all that was paid, both without their signs."""
    bonus, reward = jnp.sum(jnp.abs(intrinsic) * mask), jnp.sum(jnp.abs(extrinsic) * mask)
    return {
        "intrinsic/reward": bonus / jnp.maximum(jnp.sum(mask), 1),
        "intrinsic/share": bonus / jnp.maximum(bonus + reward, 1e-8),
    }


def pay_unordered(
    reward: IntrinsicReward | Sum, steps: Transition, key: Key[Array, ""]
) -> tuple[Float[Array, "1 batch"], IntrinsicReward | Sum]:
    """The bonus of a batch `[1, batch]` from a replay, in which no row follows another."""
    if reward.episodic:
        raise OffroadError(
            f"{reward.config} remembers the present episodes, which a batch from a replay does not have; put "
            "IntrinsicRewardEnv(env, reward) around the environment and train the agent without Curious"
        )
    bonus, paid = reward.begin(steps.reward.shape[1]).pay(steps, jnp.ones(steps.reward.shape, bool), key)
    return bonus, paid.begin(reward.spaces.num_envs)
