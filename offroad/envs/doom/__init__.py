"""ViZDoom's `my_way_home` as a place to explore: `offroad/DoomMaze-v0` (extra `doom`)."""

from offroad.envs.doom.coverage import Coverage
from offroad.envs.doom.level import Level
from offroad.envs.doom.maze import ACTIONS, STARTS, DoomMaze, make_single, make_vector
from offroad.envs.doom.textures import GROUPS, SETS, digest

__all__ = [
    "ACTIONS",
    "GROUPS",
    "SETS",
    "STARTS",
    "Coverage",
    "DoomMaze",
    "Level",
    "digest",
    "make_single",
    "make_vector",
]
