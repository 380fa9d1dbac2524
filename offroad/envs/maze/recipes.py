"""Data sets of the mazes by D4RL's recipe: a body is sent from cell to cell, and what it did is kept.

On every journey the body starts in one cell and follows waypoints to a goal in another: the next cell on the shortest
way, with uniform noise of up to a quarter of a cell, until it is in the goal's cell. The ant walks there with the
policy in `walker.npz`, the point goes straight; Gaussian noise of 0.2 is added. The journey is cut off after 1000 steps
or at its goal. Rewards and ends are then those of the maze's evaluation goal, wherever the journey was to end: 1 and
terminated within 0.5 m of it, and what follows is a new episode of the data set.

**diverse**: starts and goals are any free cells. **play**: both are from a handful of cells that D4RL's authors picked.
Without either word, start and goal are evaluation's.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from offroad.envs.made import Made, require_rows
from offroad.envs.maze.maps import MAZES, UNIT, Maze, cell_at, centre
from offroad.envs.maze.maze import MazeEnv, PointMaze, make_vector
from offroad.envs.maze.scene import GOAL_RADIUS
from offroad.envs.maze.walker import WEIGHTS, Walker
from offroad.errors import unknown

WORLDS = 64
EPISODE = 1000  # steps
NOISE = UNIT / 4  # m, at most, along x and y
ACTION_NOISE = 0.2  # standard deviation, D4RL's
Cells = Int[ndarray, "_ 2"]  # any number of them


@dataclass(frozen=True)
class Recipe:
    """What a data set is made by."""

    body: str
    maze: Maze
    kind: str

    @classmethod
    def named(cls, name: str) -> "Recipe":
        """Raises `OffroadError` for an unknown name."""
        if name not in NAMES:
            raise unknown("maze data set", name, NAMES)
        body, maze, kind = re.fullmatch(r"(\w+)maze-(\w+?)(?:-(\w+))?", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        return cls(body, MAZES[maze], kind or "fixed")

    @property
    def starts(self) -> Cells:
        own = {"fixed": [self.maze.start], "play": [self.maze.start, *self.maze.play_goals]}
        return np.array(own[self.kind]) if self.kind in own else self.maze.free

    @property
    def goals(self) -> Cells:
        own = {"fixed": [self.maze.goal], "play": self.maze.play_goals}
        return np.array(own[self.kind]) if self.kind in own else self.maze.free


NAMES = tuple(
    f"{body}maze-{maze}{kind}" for body in ("ant", "point") for maze in MAZES for kind in ("", "-diverse", "-play")
)


def push(observations: Float[ndarray, "N obs"], waypoints: Float[ndarray, "N 2"]) -> Float[ndarray, "N 2"]:
    """The point's driver: straight ahead at full speed, or less to stop at the waypoint."""
    way = (waypoints - observations) / PointMaze.SHIFT
    return way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1.0)


class Waypoints:
    """Where each of N bodies is to go now, on its way to a goal of its own."""

    def __init__(self, maze: Maze, worlds: int, random: np.random.Generator):
        self._maze, self._random = maze, random
        self._cells, self._points = np.zeros((worlds, 2), int), np.zeros((worlds, 2))

    def restart(self, which: Bool[ndarray, "N"]) -> None:
        """These bodies have been put elsewhere."""
        self._cells[which] = -1

    def __call__(self, xy: Float[ndarray, "N 2"], goals: Float[ndarray, "N 2"]) -> Float[ndarray, "N 2"]:
        cells = cell_at(xy)
        goal_cells = cell_at(goals)
        moved = (cells != self._cells).any(axis=1)
        self._cells[moved] = cells[moved]
        target = self._maze.next_cell(cells, goal_cells)
        noise = self._random.uniform(-NOISE, NOISE, self._points.shape)
        self._points[moved] = (centre(target) + noise)[moved]
        return np.where((cells == goal_cells).all(axis=1, keepdims=True), goals, self._points)


def make(
    name: str,
    steps: int,
    seed: int = 0,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """The data set `name` (one of `NAMES`) with `steps` rows, the same for the same seed.

    `progress` is told how many rows are done. Raises `OffroadError` for an unknown name or a useless number of steps.
    """
    recipe = Recipe.named(name)
    require_rows(steps)
    worlds = min(WORLDS, -(-steps // EPISODE))
    env = make_vector(
        recipe.body,
        worlds,
        maze=recipe.maze.name,
        max_episode_steps=EPISODE,
        autoreset_mode=AutoresetMode.DISABLED,
        num_threads=num_threads,
    )
    columns, (journeys, arrivals) = _record(env, recipe, steps, seed, progress)
    env.close()
    provenance = {
        "recipe": name,
        **{k: v for k, v in asdict(recipe).items() if k != "maze"},
        "action_noise": ACTION_NOISE,
        "steps": steps,
        "seed": seed,
        "worlds": worlds,
        "walker": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() if recipe.body == "ant" else None,
        "offroad": importlib.metadata.version("offroad"),
        "mujoco": mujoco.__version__,
        "numpy": np.__version__,
    }
    # Journeys that arrived or ran out of time; rows within 0.5 m of the evaluation goal.
    provenance |= {"journeys": journeys, "arrivals": arrivals}
    at_goal = int(columns["terminated"].sum())
    return Made(
        columns, provenance, f"{arrivals} of {journeys} journeys arrived; {at_goal} rows at the evaluation goal"
    )


def _record(
    env: MazeEnv, recipe: Recipe, steps: int, seed: int, progress: Callable[[int], None]
) -> tuple[dict[str, ndarray], tuple[int, int]]:
    random = np.random.default_rng(seed)
    worlds, length = env.num_envs, -(-steps // env.num_envs)
    drive = push if recipe.body == "point" else Walker()
    waypoints = Waypoints(recipe.maze, worlds, random)
    observations, actions = (
        np.zeros((worlds, rows, space.shape[1]), np.float32)  # pyright: ignore[reportOptionalSubscript]
        for rows, space in ((length + 1, env.observation_space), (length, env.action_space))
    )
    goals = np.zeros((worlds, length, 2), np.float32)
    reached, cut = (np.zeros((worlds, length), bool) for _ in range(2))
    left: dict[tuple[int, int], Float[ndarray, "obs"]] = {}  # what the last action before a reset led to
    journeys = arrivals = 0

    def restart(which: Bool[ndarray, "N"], seeds: int | None = None) -> Float[ndarray, "N obs"]:
        options = {"start_cell": _draw(recipe.starts, worlds, random), "goal_cell": _draw(recipe.goals, worlds, random)}
        observation, _ = env.reset(seed=seeds, options={"reset_mask": which, **options})
        env.extras["goal"][which] += random.uniform(-NOISE, NOISE, (worlds, 2))[which]
        waypoints.restart(which)
        return observation

    observation = restart(np.ones(worlds, bool), seed)
    evaluation_goal = centre(np.array(recipe.maze.goal))
    for t in range(length):
        goal = env.extras["goal"].copy()
        action = drive(observation, waypoints(observation[:, :2], goal))
        action = np.clip(action + random.normal(0.0, ACTION_NOISE, action.shape), -1.0, 1.0)
        observations[:, t], actions[:, t], goals[:, t] = observation, action, goal
        observation, _, terminated, truncated, _ = env.step(actions[:, t])
        reached[:, t] = np.linalg.norm(observation[:, :2] - evaluation_goal, axis=1) <= GOAL_RADIUS
        ended = terminated | truncated
        if ended.any():
            cut[:, t] = ended
            left.update({(world, t): observation[world].astype(np.float32) for world in np.flatnonzero(ended).tolist()})
            journeys, arrivals = journeys + int(ended.sum()), arrivals + int(terminated.sum())
            observation = restart(ended)
        progress(min((t + 1) * worlds, steps))
    observations[:, -1] = observation
    return _columns(observations, actions, goals, reached, cut, left, steps), (journeys, arrivals)


def _draw(cells: Cells, number: int, random: np.random.Generator) -> Cells:
    return cells[random.integers(len(cells), size=number)]


def _columns(
    observations: Float[ndarray, "N T1 obs"],
    actions: Float[ndarray, "N T A"],
    goals: Float[ndarray, "N T 2"],
    reached: Bool[ndarray, "N T"],
    cut: Bool[ndarray, "N T"],
    left: dict[tuple[int, int], Float[ndarray, "obs"]],
    steps: int,
) -> dict[str, ndarray]:
    """One world after the other, cut to `steps` rows."""
    length = actions.shape[1]
    cut[:, -1] = True
    cut.reshape(-1)[steps - 1] = True
    truncated = cut & ~reached
    world, time = np.nonzero(reached | cut)
    kept = world * length + time < steps
    world, time = world[kept], time[kept]
    finals = observations[world, time + 1]
    for row, place in enumerate(zip(world.tolist(), time.tolist())):
        if place in left:
            finals[row] = left[place]

    def flat(x: Shaped[ndarray, "N T ..."]) -> ndarray:
        return x.reshape(-1, *x.shape[2:])[:steps]

    return {
        "observations": flat(observations[:, :-1]),
        "actions": flat(actions),
        "rewards": flat(reached).astype(np.float32),
        "terminated": flat(reached),
        "truncated": flat(truncated),
        "final_observations": finals,
        "info/goal": flat(goals),
    }
