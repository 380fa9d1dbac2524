"""A body in one of D4RL's mazes that gets a reward once, at a goal that it is not told.

Shapes: N worlds; A numbers of an action.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.maze import scene
from offroad.envs.maze.maps import UNIT, Maze, centre, named
from offroad.envs.vector import MujocoVectorEnv, SingleMujocoEnv
from offroad.errors import OffroadError, unknown

OPTIONS = ("start_cell", "goal_cell")
START_NOISE = UNIT / 4  # m, at most, along x and y


class MazeEnv(MujocoVectorEnv):
    """What the mazes share: starts, goals and the reward.

    **Reward**: 1 and termination when the body's x and y are within 0.5 m of the goal after the step, else 0. An
    episode starts in the middle of the start cell plus uniform noise of up to 1 m along x and y; the goal is the
    middle of its cell. Start and goal are D4RL's for evaluation, in far corners of the maze, and the goal is no part
    of the observation.

    **Options** of `reset`: `start_cell` and `goal_cell`, each (row, column) or one pair for each world, for the
    episodes that begin; those that follow by autoreset are evaluation's again.

    Info: `success`, `xy` (the body) and `goal_xy`.

    Args:
        num_envs: N.
        maze: "umaze", "medium" or "large".
        kwargs: those of `MujocoVectorEnv`.
    """

    maze: Maze

    def _add_goal(self, maze: Maze) -> None:
        self.maze = maze
        self._add_extra("goal", (2,))

    def _start(self, world: int, random: np.random.Generator, options: Mapping[str, Any]) -> Float[ndarray, "2"]:
        """Sets the world's goal and returns where its body is to start."""
        if extra := set(options) - set(OPTIONS):
            raise unknown("reset option", sorted(extra)[0], OPTIONS)
        start, goal = (
            self._cell(name, options.get(name, default), world)
            for name, default in zip(OPTIONS, (self.maze.start, self.maze.goal))
        )
        self.extras["goal"][world] = centre(goal)
        return centre(start) + random.uniform(-START_NOISE, START_NOISE, 2)

    def _cell(self, name: str, value: Any, world: int) -> Int[ndarray, "2"]:
        cells = np.asarray(value)
        if cells.shape not in ((2,), (self.num_envs, 2)) or not np.issubdtype(cells.dtype, np.integer):
            raise OffroadError(
                f"the reset option {name!r} is {value!r}; expected whole numbers (row, column), or one pair for each "
                f"of the {self.num_envs} worlds"
            )
        cell = cells if cells.ndim == 1 else cells[world]
        self.maze.check_free(name, cell)
        return cell

    def _evaluate(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N"], Bool[ndarray, "N"], dict[str, ndarray]]:
        info = self._reset_info()
        return info["success"].astype(float), info["success"], info

    def _reset_info(self) -> dict[str, ndarray]:
        xy, goal = self.qpos[:, :2].copy(), self.extras["goal"].copy()
        return {"success": np.linalg.norm(xy - goal, axis=1) <= scene.GOAL_RADIUS, "xy": xy, "goal_xy": goal}


class PointMaze(MazeEnv):
    """A ball that is shifted by the action: OGBench's point maze, with D4RL's goal of radius 0.5 m.

    **Observation** (2): x and y in m. **Action** in [-1, 1]: the shift along x and y in units of 0.2 m; walls then
    push the ball out for 0.1 s, and it stands still again. An episode takes at most 1000 steps. See `MazeEnv`.
    """

    SHIFT = 0.2  # m

    def __init__(self, num_envs: int = 1, *, maze: str = "medium", **kwargs: Any):
        layout = named(maze)
        space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        super().__init__(scene.point(layout), num_envs=num_envs, frame_skip=5, observation_space=space, **kwargs)
        self._add_goal(layout)

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        return self._start(world, random, options), np.zeros(2)

    def _controls(self, action: Float[ndarray, "N A"]) -> Float[ndarray, "N U"]:
        """Moves the balls; the motors, which only give the actions their bounds, rest."""
        self.qpos += self.SHIFT * np.clip(action, -1.0, 1.0)
        self.qvel[:] = 0.0
        return np.zeros_like(action)

    def _observe(self) -> Float[ndarray, "N obs"]:
        return self.qpos.copy()


class AntMaze(MazeEnv):
    """D4RL's ant: 8 torques, 10 decisions a second, no end when it falls.

    **Observation** (29): position x, y, z in m, orientation as a quaternion, 8 joint angles in rad; then all 14
    velocities. **Action** in [-1, 1]: the torques of the hips and ankles. An episode takes at most 1000 steps (100 s).
    See `MazeEnv`.
    """

    def __init__(self, num_envs: int = 1, *, maze: str = "medium", **kwargs: Any):
        layout = named(maze)
        super().__init__(scene.ant(layout), num_envs=num_envs, **ANT_STEP, **kwargs)
        self._add_goal(layout)

    def _initial_state(
        self, world: int, random: np.random.Generator, options: Mapping[str, Any]
    ) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
        xy = self._start(world, random, options)
        position, velocity = standing(self.models[world], random)
        position[:2] = xy
        return position, velocity

    def _observe(self) -> Float[ndarray, "N obs"]:
        return np.concatenate((self.qpos, self.qvel), axis=1)


ANT_STEP: dict[str, Any] = {
    "frame_skip": 5,
    "observation_space": gym.spaces.Box(-np.inf, np.inf, (29,), np.float64),
}


def standing(model: mujoco.MjModel, random: np.random.Generator) -> tuple[Float[ndarray, "nq"], Float[ndarray, "nv"]]:
    """A position and velocity around the ant's upright pose, with the noise of Gymnasium and D4RL."""
    return model.qpos0 + random.uniform(-0.1, 0.1, model.nq), 0.1 * random.standard_normal(model.nv)


BODIES = {"point": PointMaze, "ant": AntMaze}


def make_vector(body: str, num_envs: int = 1, **kwargs: Any) -> MazeEnv:
    """A maze with a "point" or an "ant"; `gymnasium.make_vec` calls it and adds the time limit."""
    return BODIES[body](num_envs, **kwargs)


def make_single(body: str, **kwargs: Any) -> SingleMujocoEnv:
    """The single environment; `gymnasium.make` calls it and adds the time limit."""
    return SingleMujocoEnv(make_vector(body, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))
