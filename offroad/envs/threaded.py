"""Worlds that live in other processes or in C, as one vector environment whose threads step them side by side.

A `World` is one of them: a game engine, an emulator. It must release Python's lock while it computes.
`ThreadedVectorEnv` owns seeding, autoreset and closing; `SingleWorldEnv` is a batch of one as a `gymnasium.Env`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.infos import add_final, add_info, first
from offroad.envs.vector import RENDER_MODES
from offroad.errors import OffroadError, unknown


class World(Protocol):
    """One world with image observations. Info: the same names every time, each with a number."""

    def reset(self, random: np.random.Generator, options: Mapping[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        """Starts an episode; all its randomness, also that of later steps, comes from `random`."""
        ...

    def step(self, action: Any) -> tuple[ndarray, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, info."""
        ...

    def frame(self) -> ndarray:
        """The picture `[height, width, 3]` that a person would see now."""
        ...

    def close(self) -> None: ...


class ThreadedVectorEnv(gym.vector.VectorEnv):
    """N worlds behind Gymnasium's vector interface; what happens does not depend on the number of threads.

    Args:
        makers: makes world i, one after the other, in the thread that will step it; if one fails, the rest is closed.
        observation_space, action_space: of one world.
        autoreset_mode: one of Gymnasium's `AutoresetMode`s.
        num_threads: None takes one for each core. Each thread and the processes that its worlds start stay on one core:
            a word between two processes is then a switch on that core, not a call to another one, which takes longer.
        render_mode: None or "rgb_array".
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], World]],
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Discrete,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        render_mode: str | None = None,
        fps: float | int = 30,
    ):
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise unknown("render mode", render_mode, RENDER_MODES)
        if not makers or (num_threads is not None and num_threads < 1):
            raise OffroadError(f"num_envs is {len(makers)} and num_threads {num_threads}; expected at least 1 of each")
        self.num_envs = len(makers)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": fps, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self._choices = action_space.start + np.arange(action_space.n)
        self._randoms = [seeding.np_random() for _ in makers]
        self._observation = np.zeros((self.num_envs, *observation_space.shape), observation_space.dtype)
        self._ended = np.zeros(self.num_envs, bool)
        self._started = np.zeros(self.num_envs, bool)
        cores = sorted(os.sched_getaffinity(0))
        self._threads = [
            ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, {cores[i % len(cores)]}))
            for i in range(min(self.num_envs, num_threads or len(cores)))
        ]
        self.worlds: list[World] = []
        try:
            for i, make in enumerate(makers):
                self.worlds.append(self._threads[i % len(self._threads)].submit(make).result())
        except BaseException:
            self.close()
            raise

    # What a task may add.

    def _stepped(
        self, which: Bool[ndarray, "N"], reward: Float[ndarray, "N"], info: dict[str, ndarray]
    ) -> Float[ndarray, "N"]:
        """Called with the step of the worlds `which`, before resets: what their reward is."""
        return reward

    def _begun(self, which: Bool[ndarray, "N"], info: dict[str, ndarray]) -> None:
        """Called when the worlds `which` have started an episode."""

    # Gymnasium's interface.

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ndarray, dict[str, Any]]:
        """Starts new episodes: in all worlds, or where `options["reset_mask"]` (bool `[N]`) is True.

        An integer seeds world i with `seed + i`, a sequence gives each world its own.
        """
        options = dict(options or {})
        which = np.array(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if which.dtype != bool or which.shape != (self.num_envs,) or not which.any():
            raise OffroadError(
                f"options['reset_mask'] has dtype {which.dtype} and shape {which.shape}; expected booleans of shape "
                f"({self.num_envs},), at least one of them True"
            )
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, int | np.integer):
            seeds = [int(seeds) + world for world in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise OffroadError(
                f"{len(seeds)} seeds for {self.num_envs} worlds; pass one integer or one seed for each world"
            )
        for world in np.flatnonzero(which).tolist():
            if seeds[world] is not None:
                self._randoms[world] = seeding.np_random(seeds[world])
        info: dict[str, Any] = {}
        add_info(info, self._begin(which, options), which)
        return self._observation.copy(), info

    def step(
        self, actions: Any
    ) -> tuple[ndarray, Float[ndarray, "N"], Bool[ndarray, "N"], Bool[ndarray, "N"], dict[str, Any]]:
        """Steps every world with its action of `actions [N]`; see Gymnasium for what is returned."""
        actions = np.asarray(actions)
        known = np.issubdtype(actions.dtype, np.integer) and np.isin(actions, self._choices).all()
        if actions.shape != (self.num_envs,) or not known:
            raise OffroadError(
                f"actions are {actions.dtype} {np.array2string(actions, threshold=8)}; expected {self.num_envs} "
                f"integers, one of {self.single_action_space} for each world"
            )
        if not self._started.all():
            raise OffroadError("step() was called before reset(); call reset() first")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise OffroadError(
                f"the episodes of worlds {np.flatnonzero(self._ended).tolist()} have ended and autoreset is disabled; "
                "call reset(options={'reset_mask': terminated | truncated}) before the next step"
            )
        resetting = self._ended.copy()  # with NEXT_STEP, worlds whose action is ignored
        stepping = np.flatnonzero(~resetting)
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        values: dict[str, ndarray] = {}
        for world, found in self._each(stepping, lambda world: self.worlds[world].step(actions[world])):
            self._observation[world], reward[world], terminated[world], truncated[world], own = found
            _put(values, own, world, self.num_envs)
        if len(stepping):
            reward = self._stepped(~resetting, reward, values)

        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            resetting = terminated | truncated
            if resetting.any():
                add_final(info, self._observation, values, resetting)
        else:
            self._ended = terminated | truncated
        add_info(info, values, ~resetting)
        if resetting.any():
            add_info(info, self._begin(resetting, {}), resetting)
        return self._observation.copy(), reward, terminated, truncated, info

    def render(self) -> tuple[ndarray, ...] | None:
        """One RGB frame for each world; None without a render mode."""
        return None if self.render_mode is None else tuple(world.frame() for world in self.worlds)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends all worlds, also when one of them fails to."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        worlds, self.worlds = self.worlds, []
        failures = []
        for world in worlds:
            try:
                world.close()
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each world's own random numbers, as in Gymnasium's vector environments."""
        return tuple(random for random, _ in self._randoms)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(seed for _, seed in self._randoms)

    def _each(self, worlds: Int[ndarray, "M"], job: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        """Each of these worlds and what `job` returns for it, which runs in the world's own thread."""
        shares = [worlds[worlds % len(self._threads) == i].tolist() for i in range(len(self._threads))]
        jobs = [thread.submit(list, map(job, share)) for thread, share in zip(self._threads, shares)]
        for share, found in zip(shares, jobs):
            yield from zip(share, found.result())

    def _begin(self, which: Bool[ndarray, "N"], options: Mapping[str, Any]) -> dict[str, ndarray]:
        values: dict[str, ndarray] = {}
        begun = self._each(
            np.flatnonzero(which), lambda world: self.worlds[world].reset(self._randoms[world][0], options)
        )
        for world, (observation, own) in begun:
            self._observation[world] = observation
            _put(values, own, world, self.num_envs)
        self._ended = self._ended & ~which
        self._started = self._started | which
        self._begun(which, values)
        return values


class SingleWorldEnv(gym.Env):
    """A batch of one as an ordinary `gymnasium.Env`."""

    def __init__(self, batch: ThreadedVectorEnv):
        self.batch = batch
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.render_mode = batch.render_mode
        self.metadata = {name: batch.metadata[name] for name in ("render_modes", "render_fps")}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.batch._randoms[0] = (self.np_random, self.np_random_seed)
        observation, info = self.batch.reset(options=options)
        return observation[0], first(info)

    def step(self, action: Any) -> tuple[ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.batch.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), first(info)

    def render(self) -> ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.batch.close()


def _put(values: dict[str, ndarray], own: Mapping[str, Any], world: int, num_envs: int) -> None:
    for name, value in own.items():
        if name not in values:
            values[name] = np.zeros(num_envs, np.asarray(value).dtype)
        values[name][world] = value
