"""Levels of the platformer, drawn from a seed: a height for every column of tiles, hills behind, and enemies.

A level is a row of pieces: flat ground, pits 2 to 4 tiles wide, pipes 2 or 3 tiles high and stairs. Whatever is in the
way can be jumped by construction: before and after each obstacle there is room to run up and to land.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

LENGTH = 192  # columns
START = 4.5  # where the player starts, in tiles
FLAG = LENGTH - 12  # the column of the flag
ENEMIES = 24
PIT = -99  # the height of a pit
EARTH, PIPE = 0, 1


class Levels(NamedTuple):
    """K levels. Heights count tiles from the bottom of the picture: the ground is at 2 to 5."""

    height: Int[ndarray, "K columns"]
    kind: Int[ndarray, "K columns"]  # EARTH or PIPE
    hills: Int[ndarray, "K columns"]
    enemies: Float[ndarray, "K enemies"]  # where each starts; beyond the level: there is none
    base: Int[ndarray, "K enemies"]  # the height that each walks on


def generate(seeds: tuple[int, ...], enemies: bool) -> Levels:
    """One level for each seed."""
    levels = [_level(np.random.default_rng(seed), enemies) for seed in seeds]
    return Levels(*(np.stack(part) for part in zip(*levels)))


def _level(random: np.random.Generator, with_enemies: bool) -> Levels:
    height, kind = np.full(LENGTH, 3), np.full(LENGTH, EARTH)
    hills = 4 + np.round(2.5 * np.sin(np.arange(LENGTH) / random.uniform(3, 6)) + random.normal(0, 0.7, LENGTH))
    enemies, column, ground = [], 12, 3
    while column < FLAG - 12:
        room = int(random.integers(4, 9))
        height[column : column + room] = ground
        if with_enemies and random.random() < 0.45:
            enemies.append((column + room // 2 + 0.5, ground))
        column += room
        match random.choice(["pit", "pipe", "stairs"], p=[0.4, 0.35, 0.25]):
            case "pit":
                wide = int(random.integers(2, 5))
                height[column : column + wide] = PIT
                column += wide
            case "pipe":
                height[column : column + 2] = ground + int(random.integers(2, 4))
                kind[column : column + 2] = PIPE
                column += 2
            case _:
                up = 1 if ground <= 2 or (ground < 5 and random.random() < 0.5) else -1
                for _ in range(int(random.integers(1, 4))):
                    ground = int(np.clip(ground + up, 2, 5))
                    height[column : column + 2] = ground
                    column += 2
        height[column : column + 3] = ground
        column += 3
    height[column:] = ground
    placed = (enemies + [(1e6, 0)] * ENEMIES)[:ENEMIES]
    return Levels(
        height.astype(np.int32),
        kind.astype(np.int32),
        hills.astype(np.int32),
        np.array([x for x, _ in placed], np.float32),
        np.array([base for _, base in placed], np.int32),
    )
