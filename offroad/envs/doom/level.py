"""Where things are in a Doom map: walls, sectors, start spots and a grid of cells, read from the map's text."""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.doom import wad

CELL = 64.0  # map units: the side of a cell
SPOT, VEST = 9001, 2018  # the kinds of things that are start spots, and the goal


class Level:
    """A map's geometry in map units (a player is 32 wide); x points east, y north.

    `lines [L, 2, 2]` are all lines from end to end, `walls [W, 2, 2]` those that nobody can cross, `spots` the start
    spots by number, `goal [2]` the vest.
    """

    def __init__(self, text: str):
        parts = wad.blocks(text)
        corners = np.array([[float(v["x"]), float(v["y"])] for v in parts["vertex"]])
        ends = np.array([[int(line["v1"]), int(line["v2"])] for line in parts["linedef"]])
        self.lines = corners[ends]
        self.walls = self.lines[["sideback" not in line for line in parts["linedef"]]]
        self.spots = {int(t["id"]): (float(t["x"]), float(t["y"])) for t in parts["thing"] if int(t["type"]) == SPOT}
        self.goal = np.array(next([float(t["x"]), float(t["y"])] for t in parts["thing"] if int(t["type"]) == VEST))
        self.num_sectors = len(parts["sector"])
        # A line borders the sector on each of its sides, but not one that is on both.
        borders = np.zeros((len(self.lines), self.num_sectors), np.int64)
        for i, line in enumerate(parts["linedef"]):
            for side in ("sidefront", "sideback"):
                if side in line:
                    borders[i, int(parts["sidedef"][int(line[side])]["sector"])] ^= 1
        self._borders = borders.astype(np.float32)  # small counts, exact; NumPy multiplies whole numbers slowly
        self.low = np.floor(corners.min(0) / CELL) * CELL
        columns, rows = np.ceil((corners.max(0) - self.low) / CELL).astype(int).tolist()
        self.shape = (rows, columns)

    @property
    def num_cells(self) -> int:
        """Of the whole grid; those inside the walls are fewer."""
        return self.shape[0] * self.shape[1]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Of the grid: left, right, bottom, top."""
        (left, bottom), (rows, columns) = self.low.tolist(), self.shape
        return left, left + columns * CELL, bottom, bottom + rows * CELL

    def cell(self, position: Float[ndarray, "*n N 2"]) -> Int[ndarray, "*n N"]:
        """The number of the 64-unit cell that each position is in: row * columns + column, from the south-west."""
        column, row = np.moveaxis((position - self.low) // CELL, -1, 0).astype(np.int64)
        return np.clip(row, 0, self.shape[0] - 1) * self.shape[1] + np.clip(column, 0, self.shape[1] - 1)

    def sector(self, position: Float[ndarray, "*n N 2"]) -> Int[ndarray, "*n N"]:
        """The sector that each position is in; -1 outside the walls. Counts the lines east of it (even-odd rule)."""
        inside = self._inside(position)
        return np.where(inside.any(-1), inside.argmax(-1), -1)

    def _inside(self, position: Float[ndarray, "*n N 2"]) -> Bool[ndarray, "*n N sectors"]:
        x, y = position[..., 0, None], position[..., 1, None]
        (x1, y1), (x2, y2) = np.moveaxis(self.lines, 0, -1)
        spans = (y1 > y) != (y2 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossed = spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
        return (crossed.astype(np.float32) @ self._borders) % 2 == 1
