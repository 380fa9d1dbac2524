"""How much of a map is explored: cells and sectors of each episode, and where time was spent. No agent sees it."""

from collections import deque

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.envs.doom.level import CELL, Level

FINE = 16.0  # map units: the side of a square of the occupancy map
SAMPLES = 9  # of the straight way between two decisions: a player moves at most 66 units in one of 8 tics


class Coverage:
    """Follows N worlds through their episodes.

    `occupancy [rows, columns]` counts decisions in squares of 16 units, the way between two decisions shared out.
    `episodes` are (cells, sectors) of every episode that ended.
    """

    def __init__(self, level: Level, num_envs: int, window: int = 50):
        self.level = level
        self.position = np.zeros((num_envs, 2))
        self.cells = np.zeros((num_envs, level.num_cells), bool)  # that the present episodes have seen
        self.sectors = np.zeros((num_envs, level.num_sectors), bool)
        self.occupancy = np.zeros((int(level.shape[0] * CELL / FINE), int(level.shape[1] * CELL / FINE)))
        self.episodes: list[tuple[int, int]] = []
        self._recent: deque[tuple[ndarray, ndarray]] = deque(maxlen=window)
        self._open = np.zeros(num_envs, bool)

    def begin(self, which: Bool[ndarray, "N"], position: Float[ndarray, "N 2"]) -> None:
        """New episodes start in the worlds `which`; those that they had are over."""
        for world in np.flatnonzero(which & self._open):
            self.episodes.append((int(self.cells[world].sum()), int(self.sectors[world].sum())))
            self._recent.append((self.cells[world].copy(), self.sectors[world].copy()))
        self._open = which.copy() | self._open
        self.position = np.where(which[:, None], position, self.position)
        self.cells[which], self.sectors[which] = False, False
        self._visit(np.flatnonzero(which), position[which][:, None])

    def move(self, which: Bool[ndarray, "N"], position: Float[ndarray, "N 2"]) -> Int[ndarray, "N"]:
        """The worlds `which` went straight to `position`: how many cells each saw for the first time in its episode."""
        before = self.cells.sum(1)
        share = np.arange(1, SAMPLES + 1)[:, None] / SAMPLES
        way = self.position[:, None] + share * (position - self.position)[:, None]  # [N, samples, 2]
        self._visit(np.flatnonzero(which), way[which])
        self.position = np.where(which[:, None], position, self.position)
        return self.cells.sum(1) - before

    def metrics(self) -> dict[str, float]:
        """Means over the last 50 episodes, and what they saw together; empty before the first one ended."""
        if not self._recent:
            return {}
        cells, sectors = (np.stack(seen) for seen in zip(*self._recent))
        return {
            "coverage/cells": float(cells.sum(1).mean()),
            "coverage/sectors": float(sectors.sum(1).mean()),
            "coverage/cells_together": float(cells.any(0).sum()),
            "coverage/sectors_together": float(sectors.any(0).sum()),
            "coverage/episodes": float(len(self.episodes)),
        }

    def _visit(self, worlds: Int[ndarray, "M"], way: Float[ndarray, "M samples 2"]) -> None:
        rows = np.broadcast_to(worlds[:, None], way.shape[:2])
        self.cells[rows, self.level.cell(way)] = True
        sector = self.level.sector(way)
        self.sectors[rows[sector >= 0], sector[sector >= 0]] = True
        fine = ((way - self.level.low) // FINE).astype(int)
        column = np.clip(fine[..., 0], 0, self.occupancy.shape[1] - 1)
        row = np.clip(fine[..., 1], 0, self.occupancy.shape[0] - 1)
        np.add.at(self.occupancy, (row, column), 1 / way.shape[1])
