"""Where blocks start and where they are to go: the tasks of the stacking environment.

Positions are those of the blocks' centres, in metres, with the table at z = 0 and the hand starting above the origin.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.stack.scene import BLOCK
from offroad.errors import OffroadError

REACH = 0.15  # starts and sites lie within +-REACH of the hand's start, along x and along y
APART = 0.06  # between centres of blocks at the start, and of sites
CLEARANCE = 0.10  # of blocks from the point below the hand at the start
PITCH = 0.06  # of the rows of a pyramid
HEIGHT = 0.45  # of goals in the air, at most


def starts(random: np.random.Generator, blocks: int) -> Float[ndarray, "n 3"]:
    """Blocks on the table, not below the hand, `APART` from each other."""
    return _on_table(_scatter(random, blocks, CLEARANCE))


def tower(random: np.random.Generator, start: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """One tower on a site anywhere, also where a block lies now; block i is the i-th from below."""
    return _pile(_scatter(random, 1), len(start))


def towers(random: np.random.Generator, start: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """One tower of fewer than 3 blocks, two of up to 5, three of more; blocks are dealt out in turn."""
    blocks = len(start)
    return _pile(_scatter(random, 1 if blocks < 3 else 2 if blocks < 6 else 3, apart=0.12), blocks)


def pyramid(random: np.random.Generator, start: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """A pyramid in the plane of x and z, filled from below; its rows are `PITCH` wide."""
    blocks, rows = len(start), 1
    while rows * (rows + 1) // 2 < blocks:
        rows += 1
    places = [(column + row / 2, row) for row in range(rows) for column in range(rows - row)][:blocks]
    across, up = np.array(places, float).T
    across -= across.mean()
    site = _scatter(random, 1)[0]
    return np.stack((site[0] + PITCH * across, np.full(blocks, site[1]), BLOCK * (up + 0.5)), axis=1)


def pick(random: np.random.Generator, start: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """Every block has its own goal on the table; that of one block is in the air half of the time."""
    goals = _on_table(_scatter(random, len(start)))
    if random.random() < 0.5:
        goals[random.integers(len(start)), 2] += random.uniform(0, HEIGHT)
    return goals


TASKS: dict[str, Callable[[np.random.Generator, Float[ndarray, "n 3"]], Float[ndarray, "n 3"]]] = {
    "tower": tower,
    "towers": towers,
    "pyramid": pyramid,
    "pick": pick,
}


def near(goals: Float[ndarray, "n 3"], start: Float[ndarray, "n 3"], distance: float | int) -> Float[ndarray, "n 3"]:
    """Goals moved together, horizontally, so that the first is at most `distance` from its block."""
    offset = goals[0, :2] - start[0, :2]
    length = np.hypot(*offset)
    moved = goals.copy()
    moved[:, :2] -= offset * max(1 - distance / max(length, 1e-9), 0)
    return moved


def _pile(sites: Float[ndarray, "m 2"], blocks: int) -> Float[ndarray, "n 3"]:
    column, level = np.arange(blocks) % len(sites), np.arange(blocks) // len(sites)
    return np.concatenate((sites[column], BLOCK * (level[:, None] + 0.5)), axis=1)


def _on_table(places: Float[ndarray, "n 2"]) -> Float[ndarray, "n 3"]:
    return np.concatenate((places, np.full((len(places), 1), BLOCK / 2)), axis=1)


def _scatter(
    random: np.random.Generator, count: int, clearance: float = 0.0, apart: float = APART
) -> Float[ndarray, "n 2"]:
    """Points in the square, drawn one after the other until all keep their distances."""
    for _ in range(1000):
        places: list[ndarray] = []
        for _ in range(100 * count):
            place = random.uniform(-REACH, REACH, 2)
            if np.hypot(*place) >= clearance and all(np.hypot(*(place - p)) >= apart for p in places):
                places.append(place)
                if len(places) == count:
                    return np.array(places)
    raise OffroadError(f"found no room for {count} blocks {apart} m apart within {REACH} m; use fewer blocks")
