"""Running a policy in environments: compiled for environments written in JAX, a lean host loop for all others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Array, Float, Int, Key, PyTree

from offroad.agents.agent import Agent
from offroad.data.transitions import Rollout, Transition
from offroad.errors import OffroadError

Metrics = dict[str, Any]


def is_compiled(env: VectorEnv) -> bool:
    """Whether the environment is written in JAX, so that whole training loops compile."""
    return getattr(env, "func_env", None) is not None


# --- environments written in JAX


class JaxState(eqx.Module):
    """Where `N` functional environments stand: a pytree, so that it can be scanned, vmapped over seeds and saved."""

    env: PyTree[Any]
    observation: PyTree[Any]
    memory: PyTree[Any]
    length: Int[Array, " N"]
    episode_return: Float[Array, " N"]


class JaxCollector:
    """Pure functions that reset and step a batch of `gymnasium.experimental.functional.FuncEnv`."""

    def __init__(self, env: VectorEnv):
        self.func = env.func_env  # pyright: ignore[reportAttributeAccessIssue]
        self.num_envs = env.num_envs
        self.limit: int | None = env.max_episode_steps  # pyright: ignore[reportAttributeAccessIssue]
        self.action_space = env.single_action_space

    def reset(self, agent: Agent, key: Key[Array, ""]) -> JaxState:
        env, observation = jax.vmap(self._initial)(jax.random.split(key, self.num_envs))
        zeros = jnp.zeros(self.num_envs)
        return JaxState(env, observation, agent.initial_memory(self.num_envs), zeros.astype(jnp.int32), zeros)

    def collect(
        self, agent: Agent, state: JaxState, key: Key[Array, ""], length: int, random: bool = False
    ) -> tuple[JaxState, Rollout, Metrics]:
        """`length` steps of every environment; with `random`, actions are drawn uniformly from the space instead."""
        start = state.memory

        def step(state: JaxState, key: Key[Array, ""]) -> tuple[JaxState, tuple[Transition, Metrics]]:
            return self.step(agent, state, key, random=random)

        state, (transitions, episodes) = jax.lax.scan(step, state, jax.random.split(key, length))
        rollout = Rollout(transitions, start, jnp.ones_like(transitions.terminated))
        return state, rollout, _summary(episodes)

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
        )
        transition = Transition(state.observation, action, reward, observation, terminated, truncated)
        episodes = {"done": done, "return": episode_return, "length": length, "info": info}
        return successor, (transition, episodes)


def _summary(episodes: Metrics) -> Metrics:
    """Means over the episodes that ended (NaN if none did) and over all steps for the environment's own diagnostics."""
    done = episodes["done"]
    count = jnp.sum(done)

    def over_ended(x: Array) -> Array:
        return jnp.where(count > 0, jnp.sum(x * done) / jnp.maximum(count, 1), jnp.nan)

    return {
        "episode/return": over_ended(episodes["return"]),
        "episode/length": over_ended(episodes["length"]),
        "episode/count": count,
        **{f"env/{name}": jnp.mean(value) for name, value in episodes["info"].items()},
    }


def _random_actions(space: gym.Space, key: Key[Array, ""], num_envs: int) -> Array:
    if isinstance(space, gym_spaces.Discrete):
        return jax.random.randint(key, (num_envs,), space.start, space.start + space.n)
    assert isinstance(space, gym_spaces.Box)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, 0.0), np.where(bounded, space.high, 0.0)
    uniform = low + (high - low) * jax.random.uniform(key, (num_envs, *space.shape))
    return jnp.where(bounded, uniform, jax.random.normal(key, uniform.shape))


def clip_to(space: gym.Space, action: Any) -> Any:
    """The action inside the space's bounds; other kinds of action as they are. For JAX arrays inside compiled code."""
    return jnp.clip(action, space.low, space.high) if isinstance(space, gym_spaces.Box) else action


# --- all other environments


class HostPolicy:
    """`agent.act` with the least overhead per call: flattened once per agent, compiled, one dispatch."""

    def __init__(self, space: gym.Space):
        self.space = space
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def bind(self, agent: Agent, key: Array | None) -> Callable[[Any, int, Any], tuple[np.ndarray, np.ndarray, Any]]:
        """A function `(observation, count, memory) -> (action, clipped action, memory)`.

        Its randomness is `key` folded with `count`; without a key it is the deterministic policy.
        """
        leaves, structure = jax.tree.flatten(agent)
        if structure not in self._compiled:

            def act(leaves: list[Array], key: Array | None, count: Array, observation: Any, memory: Any) -> Any:
                agent: Agent = jax.tree.unflatten(structure, leaves)
                step_key = None if key is None else jax.random.fold_in(jax.random.wrap_key_data(key), count)
                action, memory = agent.act(observation, step_key, memory)
                return action, clip_to(self.space, action), memory

            self._compiled[structure] = jax.jit(act)
        compiled = self._compiled[structure]
        data = None if key is None else jax.random.key_data(key)  # typed keys are slower to dispatch

        def bound(observation: Any, count: int, memory: Any) -> tuple[np.ndarray, np.ndarray, Any]:
            action, clipped, memory = compiled(leaves, data, np.uint32(count), observation, memory)
            return np.asarray(action), np.asarray(clipped), memory

        return bound


class Episode(NamedTuple):
    """An episode that ended: in which copy of the environment, its undiscounted return and its length in steps."""

    env: int
    total: float
    length: int


def summarise(episodes: list[Episode]) -> Metrics:
    """Means over the episodes that ended; only the count if none did."""
    metrics: Metrics = {"episode/count": len(episodes)}
    if episodes:
        metrics["episode/return"] = float(np.mean([e.total for e in episodes]))
        metrics["episode/length"] = float(np.mean([e.length for e in episodes]))
    return metrics


class HostCollector:
    """Steps a Gymnasium vector environment, whatever its autoreset mode, and keeps the episode statistics."""

    def __init__(self, env: VectorEnv):
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.DISABLED:
            raise OffroadError(
                "this vector environment does not reset itself (autoreset_mode is DISABLED); "
                "make it with autoreset_mode SAME_STEP or NEXT_STEP"
            )
        self.env = env
        self.next_step = mode == AutoresetMode.NEXT_STEP
        self.policy = HostPolicy(env.single_action_space)
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self.observation: Any = None
        self.memory: Any = ()
        self.broken = False  # the environment failed: its state is not worth saving
        self.count = 0  # vector steps so far: the counter that makes every step's randomness its own
        self._ended = np.zeros(env.num_envs, bool)
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, np.int64)

    def reset(self, agent: Agent, seed: int) -> None:
        self.observation, _ = self._guarded(self.env.reset, seed=seed)
        self.memory = agent.initial_memory(self.env.num_envs)
        self._ended[:] = False
        self._return[:] = 0
        self._length[:] = 0

    def collect(
        self, agent: Agent, key: Array | None, length: int, random: np.random.Generator | None = None
    ) -> tuple[Rollout, list[Episode]]:
        """`length` steps of every environment; deterministic without a key, uniformly random actions with `random`.

        **Returns:** a rollout of NumPy arrays and the episodes that ended in it.
        """
        env, act = self.env, self.policy.bind(agent, key)
        start = jax.tree.map(np.asarray, self.memory)
        steps: list[Transition] = []
        masks: list[np.ndarray] = []
        episodes: list[Episode] = []
        for _ in range(length):
            if random is None:
                action, clipped, self.memory = act(self.observation, self.count, self.memory)
            else:
                action = clipped = random_actions(env, random)
            observation, reward, terminated, truncated, info = self._guarded(env.step, clipped)
            self.count += 1
            fake = self._ended  # NEXT_STEP: this step only reset the environments that ended in the one before
            done = terminated | truncated
            following = observation
            if not self.next_step and done.any():
                following = final_observations(observation, info, done)
            # Environments may reuse their buffers, so what is kept is copied.
            steps.append(
                Transition(
                    jax.tree.map(np.array, self.observation),
                    action,
                    np.array(reward, np.float32),
                    jax.tree.map(np.array, following),
                    np.array(terminated),
                    np.array(truncated),
                )
            )
            masks.append(~fake)
            self._return = np.where(fake, 0.0, self._return + reward)
            self._length = np.where(fake, 0, self._length + 1)
            if done.any():
                for index in np.flatnonzero(done):
                    episodes.append(Episode(int(index), float(self._return[index]), int(self._length[index])))
                self._return = np.where(done, 0.0, self._return)
                self._length = np.where(done, 0, self._length)
            if jax.tree.leaves(self.memory) and (done | fake).any():
                self.memory = _forget(self.memory, agent.initial_memory(env.num_envs), done | fake)
            self._ended = done if self.next_step else np.zeros_like(done)
            self.observation = observation
        self.observation = jax.tree.map(np.array, self.observation)
        rollout = Rollout(jax.tree.map(lambda *x: np.stack(x), *steps), start, np.stack(masks))
        self._check_finite(rollout.transitions)
        return rollout, episodes

    def get_state(self) -> dict[str, Any]:
        """Everything needed to continue; `env` is None if the environment's state cannot be saved."""
        save = None if self.broken else getattr(self.env, "get_state", None)
        return {
            "env": save() if save else None,
            "observation": self.observation,
            "memory": jax.tree.map(np.asarray, self.memory),
            "count": self.count,
            "ended": self._ended,
            "return": self._return,
            "length": self._length,
        }

    def set_state(self, agent: Agent, state: dict[str, Any], seed: int) -> bool:
        """Restores `get_state`'s dictionary.

        **Returns:** False if the environment could not be restored: it was reset with `seed` instead.
        """
        self.count = state["count"]
        if state["env"] is None or not hasattr(self.env, "set_state"):
            self.reset(agent, seed)
            return False
        self.env.reset(seed=seed)
        self.env.set_state(state["env"])  # pyright: ignore[reportAttributeAccessIssue]
        self.observation = state["observation"]
        self.memory = state["memory"]
        self._ended, self._return, self._length = state["ended"], state["return"], state["length"]
        return True

    def _guarded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except OffroadError:
            raise
        except Exception as error:
            self.broken = True
            raise OffroadError(
                f"environment {self.name!r} raised {type(error).__name__} after {self.count} steps: {error}; "
                "fix the environment and resume the run"
            ) from error

    def _check_finite(self, steps: Transition) -> None:
        """Raises for the first NaN or infinity that the environment returned."""
        named = [("reward", steps.reward)] + [
            (f"observation{jax.tree_util.keystr(path)}", leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(steps.next_observation)
        ]
        for name, values in named:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                self.broken = True
                bad = np.argwhere(~np.isfinite(values))[0]
                step = self.count - len(values) + int(bad[0]) + 1
                raise OffroadError(
                    f"environment {self.name!r} returned {values[tuple(bad)]} as {name} in copy {bad[1]} at step "
                    f"{step}; fix the environment and resume the run"
                )


def _forget(memory: Any, initial: Any, where: np.ndarray) -> Any:
    """The memory with the rows of finished episodes replaced by the initial one."""
    return jax.tree.map(lambda new, old: np.where(where.reshape(-1, *(1,) * (old.ndim - 1)), new, old), initial, memory)


def random_actions(env: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Uniform actions for every environment; unbounded directions are drawn from a standard normal."""
    space = env.single_action_space
    if isinstance(space, gym_spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, env.num_envs)
    assert isinstance(space, gym_spaces.Box)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, 0.0), np.where(bounded, space.high, 0.0)
    shape = (env.num_envs, *space.shape)
    return np.where(bounded, rng.uniform(low, high, shape), rng.standard_normal(shape)).astype(space.dtype)


def final_observations(observation: Any, info: dict[str, Any], done: np.ndarray) -> Any:
    """SAME_STEP autoreset: `observation` with the rows of the finished episodes replaced by `info["final_obs"]`."""
    result = jax.tree.map(np.array, observation)

    def put(whole: Any, final: Any) -> None:
        if isinstance(whole, dict):  # Gymnasium gathers the final observations of a Dict space key by key
            for key in whole:
                put(whole[key], final[key])
        else:
            for index in np.flatnonzero(done):
                whole[index] = final[index]

    put(result, info["final_obs"])
    return result
