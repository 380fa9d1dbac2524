"""How a policy is examined: whole episodes on seeds that no training saw, acting as in training, by the dice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from numpy import ndarray

import offroad
from offroad.agents import Agent
from offroad.data.transitions import Transition
from offroad.envs.doom import DoomMaze
from offroad.studies.curiosity.settings import EXAM_SEED
from offroad.studies.study import Metrics
from offroad.train.collect import HostPolicy


class Trained:
    """The policy of an agent. It draws its actions: a deterministic one of an explorer walks in circles."""

    def __init__(self, agent: Agent, seed: int):
        self._agent, self._count, self._memory = agent, 0, ()
        self._act = HostPolicy(agent.spaces.action).bind(agent, jax.random.key(EXAM_SEED + seed))

    def begin(self, worlds: int) -> None:
        """Forgets the episodes before."""
        self._memory = self._agent.initial_memory(worlds)

    def __call__(self, observation: Any) -> Int[ndarray, "N"]:
        _, action, self._memory = self._act(observation, self._count, self._memory)
        self._count += 1
        return action


class Blind:
    """Draws actions with fixed frequencies and looks at nothing: with equal ones, the random policy."""

    def __init__(self, frequencies: Float[ndarray, "A"], seed: int):
        self._frequencies, self._rng = frequencies, np.random.default_rng(EXAM_SEED + seed)

    def begin(self, worlds: int) -> None:
        self._worlds = worlds

    def __call__(self, observation: Any) -> Int[ndarray, "N"]:
        return self._rng.choice(len(self._frequencies), self._worlds, p=self._frequencies)


class Wanderer:
    """Goes somewhere without looking, in the maze's `macro` actions: straight on, and every other time in a curve of up
    to five decisions."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(EXAM_SEED + seed)

    def begin(self, worlds: int) -> None:
        self._left, self._side = np.zeros(worlds, int), np.zeros(worlds, int)  # decisions of the curve that are left

    def __call__(self, observation: Any) -> Int[ndarray, "N"]:
        worlds = len(self._left)
        new = (self._left == 0) & (self._rng.random(worlds) < 0.5)
        self._side = np.where(new, self._rng.integers(1, 3, worlds), self._side)  # forward and left, forward and right
        self._left = np.where(new, self._rng.integers(1, 6, worlds), np.maximum(self._left - 1, 0))
        return np.where(self._left > 0, self._side, 0)


Policy = Trained | Blind | Wanderer


def uniform(actions: int, seed: int) -> Blind:
    return Blind(np.full(actions, 1 / actions), seed)


@dataclass(frozen=True)
class Moment:
    """A step of an exam. `counted` are the worlds whose first episode it belongs to, `ended` those where it ends it."""

    before: Any  # observations; `after` those that the actions led to
    after: Any
    actions: Int[ndarray, "N"]
    rewards: Float[ndarray, "N"]
    info: dict[str, Any]
    counted: Bool[ndarray, "N"]
    ended: Bool[ndarray, "N"]


def stroll(env: VectorEnv, policy: Policy, episodes: int, seed: int) -> Iterator[Moment]:
    """The first episode of each world, several times over, `episodes` in all.

    `env` does not reset itself, so that what it knows of an episode that ended can be read before the next moment.
    """
    for start in range(0, episodes, env.num_envs):
        observation, _ = env.reset(seed=EXAM_SEED + 10_000 * seed + start)
        policy.begin(env.num_envs)
        counted = np.arange(env.num_envs) < episodes - start
        while counted.any():
            actions = policy(observation)
            after, rewards, terminated, truncated, info = env.step(actions)
            over = np.asarray(terminated | truncated)
            yield Moment(observation, after, actions, np.asarray(rewards, float), info, counted, over & counted)
            observation = after
            counted = counted & ~over
            if over.any() and counted.any():
                observation, _ = env.reset(options={"reset_mask": over})


@dataclass(frozen=True)
class Journey:
    """What episodes in the maze saw. Rows are episodes."""

    cells: Bool[ndarray, "E cells"]
    sectors: Bool[ndarray, "E sectors"]
    success: Bool[ndarray, "E"]
    frequencies: Float[ndarray, "A"]  # of the actions
    occupancy: Float[ndarray, "rows columns"]  # a world that found the vest walks on until the others are done
    walls: Float[ndarray, "W 2 2"]
    extent: tuple[float, float, float, float]
    film: ndarray  # [T, height, width]: the first episode of the first world

    def metrics(self) -> dict[str, float]:
        return {
            "cells per episode": float(self.cells.sum(1).mean()),
            "sectors per episode": float(self.sectors.sum(1).mean()),
            "cells together": float(self.cells.any(0).sum()),
            "sectors together": float(self.sectors.any(0).sum()),
            "success": float(self.success.mean()),
        }


def explore(policy: Policy, options: dict[str, Any], episodes: int, seed: int) -> Journey:
    """Episodes in the Doom maze with these options, and no reward but for the vest."""
    worlds = min(episodes, 16)
    env: Any = offroad.make_vec("offroad/DoomMaze-v0", worlds, autoreset_mode=AutoresetMode.DISABLED, **options)
    maze: DoomMaze = env.unwrapped
    cells, sectors, success, film, filming = [], [], [], [], True
    counts = np.zeros(env.single_action_space.n)
    try:
        for now in stroll(env, policy, episodes, seed):
            np.add.at(counts, now.actions[now.counted], 1)
            if filming:
                film.append(maze.worlds[0].view)
                filming = not now.ended[0]
            for world in np.flatnonzero(now.ended):
                cells.append(maze.coverage.cells[world].copy())
                sectors.append(maze.coverage.sectors[world].copy())
                success.append(bool(now.rewards[world] > 0))
        return Journey(
            np.array(cells),
            np.array(sectors),
            np.array(success),
            counts / counts.sum(),
            maze.coverage.occupancy.copy(),
            maze.level.walls,
            maze.level.extent,
            np.array(film),
        )
    finally:
        env.close()


def record(policy: Policy, options: dict[str, Any], episodes: int, seed: int) -> tuple[list[Transition], float]:
    """Episodes in the Doom maze as transitions, and how many cells they saw on average."""
    env: Any = offroad.make_vec("offroad/DoomMaze-v0", episodes, autoreset_mode=AutoresetMode.DISABLED, **options)
    rows: list[list[Transition]] = [[] for _ in range(episodes)]
    cells = []
    try:
        for now in stroll(env, policy, episodes, seed):
            for world in np.flatnonzero(now.counted):
                end, reward = now.ended[world], np.float32(now.rewards[world])
                step = Transition(now.before[world], now.actions[world], reward, now.after[world], end, end & False)
                rows[world].append(step)
            cells += [env.unwrapped.coverage.cells[world].sum() for world in np.flatnonzero(now.ended)]
    finally:
        env.close()
    return [jax.tree.map(lambda *x: np.stack(x), *row) for row in rows], float(np.mean(cells))


def columns(rows: Sequence[dict[str, float]]) -> Metrics:
    """Metrics with a value for each seed."""
    return {name: [row[name] for row in rows] for name in rows[0]}
