"""Environments written in JAX as Gymnasium environments: a batch of them, compiled, or a single one.

Gymnasium's own `FunctionalJaxVectorEnv` runs uncompiled and needs a state that is a single array; this one compiles a
step into one call and takes any pytree.
"""

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from offroad.errors import OffroadError


class JaxVectorEnv(VectorEnv):
    """`num_envs` copies of a functional environment, stepped by one compiled function. Gives and takes NumPy arrays.

    Every copy has its own random stream: copy `i` of `reset(seed=s)` does what a single environment does with seed
    `s + i`. `get_state` and `set_state` save and restore it exactly.

    Args:
        func_env: pure functions of one environment; they are mapped over the batch here.
        max_episode_steps: truncates an episode after so many steps; None for never.
        autoreset_mode: what happens after an episode's end, see Gymnasium's `AutoresetMode`.
    """

    def __init__(
        self,
        func_env: FuncEnv,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ):
        self.func_env, self.num_envs, self.max_episode_steps = func_env, num_envs, max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = func_env.observation_space, func_env.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._reset = jax.jit(jax.vmap(self._reset_one))
        self._step = jax.jit(jax.vmap(self._step_one))
        self._carry: PyTree[Array] = None  # state, observation, random key, steps of the episode, whether it has ended

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None):
        """Starts new episodes: in all copies, or where the Boolean array `options["reset_mask"]` is True.

        `seed`: one for each copy, or a number to count up from; without, the random streams go on.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = (
            [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
        )
        if len(seeds) != self.num_envs:
            raise OffroadError(
                f"reset was given {len(seeds)} seeds; expected one for each of {self.num_envs} environments"
            )
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)), bool)
        if mask.shape != (self.num_envs,) or not (mask.all() or self._carry is not None):
            raise OffroadError(
                f"reset_mask has shape {mask.shape}; expected ({self.num_envs},), all True in the first reset"
            )
        if self._carry is None:
            seeds = [int(self.np_random.integers(2**31)) if seed is None else seed for seed in seeds]
            keys = np.zeros((self.num_envs, 2), np.uint32)
        else:
            keys = np.array(self._carry[2])
        for i, seed_i in enumerate(seeds):
            if seed_i is not None and mask[i]:
                keys[i] = jax.random.key_data(jax.random.key(seed_i))
        carry, info = self._reset(keys)
        self._carry = carry if mask.all() else _where(mask, carry, self._carry)
        return _numpy(self._carry[1]), _masked(_numpy(info), mask)

    def step(self, actions: Any):
        if self._carry is None:
            raise OffroadError("step was called before reset; call reset first")
        ended = np.asarray(self._carry[4])
        if self.autoreset_mode == AutoresetMode.DISABLED and ended.any():
            first = int(np.flatnonzero(ended)[0])
            raise OffroadError(
                f"environment {first} was stepped after its episode had ended; with autoreset_mode DISABLED, "
                "call reset(options={'reset_mask': terminated | truncated}) first"
            )
        actions = jax.tree.map(jnp.asarray, actions)
        self._carry, out = self._step(self._carry, actions)
        reward, terminated, truncated, info, reset_info, final = _numpy(out)
        observation = _numpy(self._carry[1])
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            infos = _merged(_masked(info, ~ended), _masked(reset_info, ended))
        elif self.autoreset_mode == AutoresetMode.SAME_STEP:
            done = terminated | truncated
            infos = _merged(_masked(info, ~done), _masked(reset_info, done))
            if done.any():
                last = np.full(self.num_envs, None, object)
                for i in np.flatnonzero(done):
                    last[i] = jax.tree.map(lambda leaf, i=i: leaf[i], final)
                infos |= {"final_obs": last, "_final_obs": done}
                infos |= {"final_info": _masked(info, done), "_final_info": done.copy()}
        else:
            infos = _masked(info, np.ones(self.num_envs, bool))
        return observation, reward.astype(np.float64), terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as NumPy arrays."""
        if self._carry is None:
            raise OffroadError("get_state was called before reset; call reset first")
        return {f"{i}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(self._carry))}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where `get_state` was called, in an environment made with the same arguments."""
        template = jax.eval_shape(self._reset, jnp.zeros((self.num_envs, 2), jnp.uint32))[0]
        expected, structure = jax.tree.flatten(template)
        leaves = [state.get(f"{i}") for i in range(len(expected))]
        for i, (found, wanted) in enumerate(zip(leaves, expected)):
            if found is None or found.shape != wanted.shape:
                shape = "missing" if found is None else f"of shape {found.shape}"
                raise OffroadError(
                    f"array {i} of the saved environment state is {shape}; expected shape {wanted.shape}: "
                    "was it saved with other arguments or another num_envs?"
                )
        self._carry = jax.tree.unflatten(structure, [jnp.asarray(leaf, w.dtype) for leaf, w in zip(leaves, expected)])

    # Pure functions of one environment

    def _reset_one(self, key: PRNGKeyArray):
        key, initial, observe = jax.random.split(key, 3)
        state = self.func_env.initial(initial)
        carry = state, self.func_env.observation(state, observe), key, jnp.zeros((), jnp.int32), jnp.array(False)
        return carry, self.func_env.state_info(state)

    def _step_one(self, carry, action):
        state, _, key, steps, ended = carry
        key, again, move, observe, judge = jax.random.split(key, 5)
        following = self.func_env.transition(state, action, move)
        reward = self.func_env.reward(state, action, following, judge)
        terminated = jnp.asarray(self.func_env.terminal(following, judge), bool)
        observation = self.func_env.observation(following, observe)
        info = self.func_env.transition_info(state, action, following)
        steps = steps + 1
        limit = jnp.inf if self.max_episode_steps is None else self.max_episode_steps
        truncated = (steps >= limit) & ~terminated

        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            replace = ended
            reward = jnp.where(ended, 0.0, reward)
            terminated, truncated = terminated & ~ended, truncated & ~ended
        elif self.autoreset_mode == AutoresetMode.SAME_STEP:
            replace = terminated | truncated
        else:
            replace = jnp.array(False)
        now_ended = (terminated | truncated) & (self.autoreset_mode != AutoresetMode.SAME_STEP)
        carry = following, observation, key, steps, now_ended
        fresh, reset_info = self._reset_one(again)
        # A fresh copy goes on with the old random stream: `again` belongs to the reset.
        carry = _where(replace, (*fresh[:2], key, fresh[3], now_ended), carry)
        return carry, (reward, terminated, truncated, info, reset_info, observation)


class JaxEnv(gym.Env):
    """A single functional environment: a `JaxVectorEnv` of one. Time limits are Gymnasium's wrapper's business."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, func_env: FuncEnv):
        self.func_env = func_env
        self.batch = JaxVectorEnv(func_env, 1, autoreset_mode=AutoresetMode.DISABLED)
        self.observation_space, self.action_space = func_env.observation_space, func_env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        observation, info = self.batch.reset(seed=seed)
        return _first(observation), _scalars(info)

    def step(self, action: Any):
        action = jax.tree.map(lambda leaf: np.asarray(leaf)[None], action)
        observation, reward, terminated, truncated, info = self.batch.step(action)
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _scalars(info)

    def get_state(self) -> dict[str, Any]:
        return self.batch.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.batch.set_state(state)


def _where(mask: Bool[Array | np.ndarray, "*batch"], new: PyTree, old: PyTree) -> PyTree:
    def pick(new, old):
        return jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * (new.ndim - jnp.ndim(mask))), new, old)

    return jax.tree.map(pick, new, old)


def _numpy(tree: PyTree) -> PyTree:
    """NumPy copies: arrays that share memory with JAX's are read-only, and callers may want to write."""
    return jax.tree.map(np.array, tree)


def _masked(info: dict[str, Any], mask: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """Gymnasium's vector format: zero where the mask is False, and the mask under the name with an underscore."""
    result = {}
    for name, value in info.items() if mask.any() else ():
        if isinstance(value, dict):
            result[name] = _masked(value, mask)
        else:
            result[name] = np.zeros_like(value)
            result[name][mask] = value[mask]
        result[f"_{name}"] = mask.copy()
    return result


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two infos whose masks do not overlap."""
    result = one | {name: value for name, value in other.items() if name not in one}
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        result[name] = _merged(a, b) if isinstance(a, dict) else (a | b if a.dtype == bool else a + b)
    return result


def _first(observation: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], observation)


def _scalars(info: dict[str, Any]) -> dict[str, Any]:
    """The info of a batch of one, without the masks."""
    return {name: _first(value) for name, value in info.items() if not name.startswith("_")}
