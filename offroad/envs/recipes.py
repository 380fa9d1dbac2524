"""Data sets that need no download: they are generated, by name, the same for the same seed."""

from collections.abc import Callable

from offroad.envs import pendulum
from offroad.envs.kitchen import recipes as kitchen
from offroad.envs.made import Made
from offroad.envs.maze import recipes as maze
from offroad.errors import unknown

NAMES = (*maze.NAMES, *kitchen.NAMES, *pendulum.NAMES)


def make(
    name: str,
    steps: int,
    seed: int = 0,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """The data set `name` (one of `NAMES`) with `steps` rows; `progress` is told how many are done.

    Raises `OffroadError` for an unknown name, a useless number of steps, and for a kitchen without gymnasium-robotics.
    """
    if name not in NAMES:
        raise unknown("data set that can be made", name, NAMES)
    module = next(module for module in (maze, kitchen, pendulum) if name in module.NAMES)
    return module.make(name, steps, seed, num_threads=num_threads, progress=progress)
