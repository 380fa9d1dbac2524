"""Running a policy in environments written in JAX: pure functions, for training loops that compile as a whole."""

from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from offroad.agents.agent import Agent
from offroad.data.transitions import Rollout, Transition
from offroad.train.collect import Metrics, clip_to


class JaxState(eqx.Module):
    """Where `N` functional environments stand: a pytree, so that it can be scanned, vmapped over seeds and saved."""

    env: PyTree[Any]
    observation: PyTree[Any]
    memory: PyTree[Any]
    length: Int[Array, " N"]
    episode_return: Float[Array, " N"]
    whole: Bool[Array, " N"]  # False in a first episode that began at a later age


class JaxCollector:
    """Pure functions that reset and step a batch of `gymnasium.experimental.functional.FuncEnv`."""

    def __init__(self, env: VectorEnv):
        self.func = env.func_env  # pyright: ignore[reportAttributeAccessIssue]
        self.num_envs = env.num_envs
        self.limit: int | None = env.max_episode_steps  # pyright: ignore[reportAttributeAccessIssue]
        self.action_space = env.single_action_space

    def reset(self, agent: Agent, key: Key[Array, ""], staggered: bool = False) -> JaxState:
        """Starts all episodes; `staggered` gives the first ones ages drawn at random, so that time limits do not
        end all of them in the same step and a rollout sees every phase of an episode. Those do not count as episodes:
        their beginning is missing."""
        env_key, age_key = jax.random.split(key)
        env, observation = jax.vmap(self._initial)(jax.random.split(env_key, self.num_envs))
        zeros = jnp.zeros(self.num_envs, jnp.int32)
        age = jax.random.randint(age_key, zeros.shape, 0, self.limit) if staggered and self.limit else zeros
        return JaxState(env, observation, agent.initial_memory(self.num_envs), age, zeros.astype(jnp.float32), age == 0)

    def collect(
        self, agent: Agent, state: JaxState, key: Key[Array, ""], length: int, random: bool = False
    ) -> tuple[JaxState, Rollout, Metrics]:
        """`length` steps of every environment; with `random`, actions are drawn uniformly from the space instead.

        The last result is for `summary`.
        """
        start = state.memory

        def step(state: JaxState, key: Key[Array, ""]) -> tuple[JaxState, tuple[Transition, Metrics]]:
            return self.step(agent, state, key, random=random)

        state, (transitions, episodes) = jax.lax.scan(step, state, jax.random.split(key, length))
        rollout = Rollout(transitions, start, jnp.ones_like(transitions.terminated))
        done, returned = episodes["done"], (transitions.next_observation, transitions.reward)
        floats = [leaf for leaf in jax.tree.leaves(returned) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return (
            state,
            rollout,
            {
                "count": jnp.sum(done),
                "return": jnp.sum(jnp.where(done, episodes["return"], 0.0)),
                "length": jnp.sum(jnp.where(done, episodes["length"], 0)),
                "nonfinite": sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in floats),
                "info": jax.tree.map(jnp.mean, episodes["info"]),
            },
        )

    def _initial(self, key: Key[Array, ""]) -> tuple[PyTree[Any], PyTree[Any]]:
        initial_key, observation_key = jax.random.split(key)
        state = self.func.initial(initial_key)
        return state, self.func.observation(state, observation_key)

    def step(
        self, agent: Agent, state: JaxState, key: Key[Array, ""], deterministic: bool = False, random: bool = False
    ) -> tuple[JaxState, tuple[Transition, Metrics]]:
        """One step of every environment, those whose episode ended being reset."""
        act_key, env_key = jax.random.split(key)
        if random:
            action, memory = _random_actions(self.action_space, act_key, self.num_envs), state.memory
        else:
            action, memory = agent.act(state.observation, None if deterministic else act_key, state.memory)

        def one(env: Any, action: Any, key: Key[Array, ""]) -> Any:
            transition, observation, reset = jax.random.split(key, 3)
            following = self.func.transition(env, action, transition)
            return (
                following,
                self.func.observation(following, observation),
                self.func.reward(env, action, following, transition),
                self.func.terminal(following, transition),
                self.func.transition_info(env, action, following),
                self._initial(reset),
            )

        following, observation, reward, terminated, info, (fresh, first) = jax.vmap(one)(
            state.env, clip_to(self.action_space, action), jax.random.split(env_key, self.num_envs)
        )
        length = state.length + 1
        truncated = jnp.zeros_like(terminated) if not self.limit else (length >= self.limit) & ~terminated
        done = terminated | truncated
        episode_return = state.episode_return + reward

        def select(new: Array, old: Array) -> Array:
            return jnp.where(done.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        successor = JaxState(
            jax.tree.map(select, fresh, following),
            jax.tree.map(select, first, observation),
            jax.tree.map(select, agent.initial_memory(self.num_envs), memory),
            jnp.where(done, 0, length),
            jnp.where(done, 0.0, episode_return),
            state.whole | done,
        )
        transition = Transition(state.observation, action, reward, observation, terminated, truncated)
        episodes = {"done": done & state.whole, "return": episode_return, "length": length, "info": info}
        return successor, (transition, episodes)


def summary(tallies: Metrics) -> Metrics:
    """Means over the episodes that ended in one or several rollouts (NaN if none did), and over all steps of what the
    environment tells about itself. `nonfinite` counts the NaNs and infinities among observations and rewards."""
    count = jnp.sum(tallies["count"])

    def over_ended(sums: Array) -> Array:
        return jnp.where(count > 0, jnp.sum(sums) / jnp.maximum(count, 1), jnp.nan)

    return {
        "episode/return": over_ended(tallies["return"]),
        "episode/length": over_ended(tallies["length"]),
        "episode/count": count,
        **{f"env/{name}": jnp.mean(value) for name, value in tallies["info"].items()},
        "nonfinite": jnp.sum(tallies["nonfinite"]),
    }


def _random_actions(space: gym.Space, key: Key[Array, ""], num_envs: int) -> Array:
    if isinstance(space, gym_spaces.Discrete):
        return jax.random.randint(key, (num_envs,), space.start, space.start + space.n)
    assert isinstance(space, gym_spaces.Box)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, 0.0), np.where(bounded, space.high, 0.0)
    uniform = low + (high - low) * jax.random.uniform(key, (num_envs, *space.shape))
    return jnp.where(bounded, uniform, jax.random.normal(key, uniform.shape))
