"""Running a policy in any Gymnasium environment: a lean loop on the host."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from jaxtyping import Array

from offroad.agents.agent import Agent
from offroad.data.transitions import Rollout, Transition
from offroad.errors import OffroadError

Metrics = dict[str, Any]


def is_compiled(env: VectorEnv) -> bool:
    """Whether the environment is written in JAX, so that whole training loops compile.

    A wrapped one is stepped on the host: compiled loops would go round the wrapper.
    """
    return not isinstance(env, VectorWrapper) and getattr(env, "func_env", None) is not None


def name_of(env: VectorEnv) -> str:
    """What messages and `config.json` call an environment."""
    return env.spec.id if env.spec is not None else type(getattr(env, "func_env", env.unwrapped)).__name__


def clip_to(space: gym.Space, action: Any) -> Any:
    """The action inside the space's bounds; other kinds of action as they are. For JAX arrays inside compiled code."""
    return jnp.clip(action, space.low, space.high) if isinstance(space, gym_spaces.Box) else action


class HostPolicy:
    """`agent.act` with the least overhead per call: flattened once per agent, compiled, one dispatch.

    The first `deterministic` rows are acted in without exploration, whatever the key.
    """

    def __init__(self, space: gym.Space, deterministic: int = 0):
        self.space, self.deterministic = space, deterministic
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
                found = agent.act(observation, step_key, memory)
                if key is not None and self.deterministic:  # XLA does what both calls have in common once
                    found = jax.tree.map(self._first_of, agent.act(observation, None, memory), found)
                action, memory = found
                return action, clip_to(self.space, action), memory

            self._compiled[structure] = jax.jit(act)
        compiled = self._compiled[structure]
        data = None if key is None else jax.random.key_data(key)  # typed keys are slower to dispatch

        def bound(observation: Any, count: int, memory: Any) -> tuple[np.ndarray, np.ndarray, Any]:
            action, clipped, memory = compiled(leaves, data, np.uint32(count), observation, memory)
            return np.asarray(action), np.asarray(clipped), memory

        return bound

    def _first_of(self, one: Array, other: Array) -> Array:
        return jnp.concatenate([one[: self.deterministic], other[self.deterministic :]])


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
    """Steps a Gymnasium vector environment, whatever its autoreset mode, and keeps the episode statistics.

    In the first `deterministic` copies the policy acts without exploration, unless all actions are random.
    """

    def __init__(self, env: VectorEnv, deterministic: int = 0):
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.DISABLED:
            raise OffroadError(
                "this vector environment does not reset itself (autoreset_mode is DISABLED); "
                "make it with autoreset_mode SAME_STEP or NEXT_STEP"
            )
        self.env = env
        self.next_step = mode == AutoresetMode.NEXT_STEP
        self.policy = HostPolicy(env.single_action_space, deterministic)
        self.name = name_of(env)
        self.observation: Any = None
        self.memory: Any = ()
        self.broken = False  # the environment failed: its state is not worth saving
        # Of the class, as Gymnasium's wrappers pass on all attributes of what they wrap, but have a state of their own.
        self._saves = hasattr(type(env), "get_state") and hasattr(type(env), "set_state")
        self.count = 0  # vector steps so far: the counter that makes every step's randomness its own
        self._ended = np.zeros(env.num_envs, bool)
        self._return = np.zeros(env.num_envs)
        self.length = np.zeros(env.num_envs, np.int64)  # steps of the present episodes

    def reset(self, agent: Agent, seed: int) -> None:
        observation, _ = self._guarded("reset", self.env.reset, seed=seed)
        # 64-bit numbers become what JAX computes with: half the memory, and no conversion in every call.
        self.observation = jax.tree.map(lambda x: np.array(x, jax.dtypes.canonicalize_dtype(x.dtype)), observation)
        self.memory = agent.initial_memory(self.env.num_envs)
        self._check_finite(np.zeros((1, self.env.num_envs)), jax.tree.map(lambda x: x[None], self.observation))
        self._ended[:] = False
        self._return[:] = 0
        self.length[:] = 0

    def collect(
        self, agent: Agent, key: Array | None, length: int, random: np.random.Generator | None = None
    ) -> tuple[Rollout, list[Episode]]:
        """`length` steps of every environment; deterministic without a key, uniformly random actions with `random`.

        **Returns:** a rollout of NumPy arrays and the episodes that ended in it.
        """
        act, num_envs = self.policy.bind(agent, key), self.env.num_envs
        start = jax.tree.map(np.asarray, self.memory)
        observations = jax.tree.map(lambda x: np.empty((length + 1, *x.shape), x.dtype), self.observation)
        _write(observations, 0, self.observation)
        actions: list[np.ndarray] = []
        rewards = np.empty((length, num_envs), np.float32)
        terminated, truncated, mask = (np.empty((length, num_envs), bool) for _ in range(3))
        last: list[tuple[tuple[int, int], Any]] = []  # SAME_STEP: final observations and where they belong
        episodes: list[Episode] = []
        for t in range(length):
            if random is None:
                now = jax.tree.map(lambda x: x[t], observations)  # noqa: B023
                action, clipped, self.memory = act(now, self.count, self.memory)
            else:
                action = clipped = random_actions(self.env, random)
            try:
                observation, reward, terminated[t], truncated[t], info = self._guarded("step", self.env.step, clipped)
            except OffroadError:
                # A NaN that the environment returned earlier may well be why it fails now: then that is the message.
                self._check_finite(rewards[:t], jax.tree.map(lambda x: x[1 : t + 1], observations))  # noqa: B023
                raise
            self.count += 1
            actions.append(action)
            rewards[t] = reward
            _write(observations, t + 1, observation)
            fake = self._ended  # NEXT_STEP: this step only reset the environments that ended in the one before
            done = (terminated[t] | truncated[t]) & ~fake
            mask[t] = ~fake
            self._return += reward
            self.length += 1
            ended = done | fake
            if ended.any():
                for index in np.flatnonzero(done).tolist():
                    episodes.append(Episode(index, float(self._return[index]), int(self.length[index])))
                    if not self.next_step:
                        last.append(((t, index), info["final_obs"][index]))
                self._return[ended] = 0
                self.length[ended] = 0
                if jax.tree.leaves(self.memory):
                    self.memory = _forget(self.memory, agent.initial_memory(num_envs), ended)
            self._ended = done if self.next_step else fake
        self.observation = jax.tree.map(lambda x: x[-1].copy(), observations)
        following = jax.tree.map(lambda x: x[1:], observations)
        self._check_finite(rewards, following)
        if last:
            following = jax.tree.map(np.copy, following)
            for where, final in last:
                _write(following, where, final)
            self._check_finite(rewards, following)
        observations = jax.tree.map(lambda x: x[:-1], observations)
        steps = Transition(observations, np.stack(actions), rewards, following, terminated, truncated)
        return Rollout(steps, start, mask), episodes

    def get_state(self) -> dict[str, Any]:
        """Everything needed to continue; `env` is None if the environment's state cannot be saved."""
        return {
            "env": self.env.get_state() if self._saves and not self.broken else None,  # pyright: ignore
            "observation": self.observation,
            "memory": jax.tree.map(np.asarray, self.memory),
            "count": self.count,
            "ended": self._ended,
            "return": self._return,
            "length": self.length,
        }

    def set_state(self, agent: Agent, state: dict[str, Any], seed: int) -> bool:
        """Restores `get_state`'s dictionary.

        **Returns:** False if the environment could not be restored: it was reset with `seed` instead.
        """
        self.count = state["count"]
        if state["env"] is None or not self._saves:
            self.reset(agent, seed)
            return False
        self.env.reset(seed=seed)
        self.env.set_state(state["env"])  # pyright: ignore[reportAttributeAccessIssue]
        self.observation = state["observation"]
        self.memory = state["memory"]
        self._ended, self._return, self.length = state["ended"], state["return"], state["length"]
        return True

    def _guarded(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            self.broken = True
            if isinstance(error, OffroadError):
                raise
            where = f"step {self.count + 1}" if what == "step" else what
            raise OffroadError(
                f"environment {self.name!r} raised {type(error).__name__} in {where}: {error}; "
                "fix the environment and resume the run"
            ) from error

    def _check_finite(self, rewards: np.ndarray, following: Any) -> None:
        """Raises for the first NaN or infinity that the environment returned, in the newest `len(rewards)` steps."""
        named = [("reward", rewards)] + [
            (f"observation{jax.tree_util.keystr(path)}", leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(following)
        ]
        for name, values in named:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                self.broken = True
                bad = np.argwhere(~np.isfinite(values))[0]
                raise OffroadError(
                    f"environment {self.name!r} returned {values[tuple(bad)]} as {name} in copy {bad[1]} at step "
                    f"{self.count - len(rewards) + int(bad[0]) + 1}; fix the environment and resume the run"
                )


def _write(whole: Any, where: Any, part: Any) -> None:
    """`whole[where] = part` in every array of an observation. Gymnasium's dictionaries differ in order and type."""
    if isinstance(whole, dict):
        for name in whole:
            _write(whole[name], where, part[name])
    else:
        whole[where] = part


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
