"""The mazes of D4RL: walls and free cells, and the shortest ways through them.

Cells are (row, column), counted from the upper left of the drawings below, walls included. A cell is `UNIT` metres
wide; x runs along the columns and y along the rows, and cell (1, 1) lies around the origin.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offroad.errors import OffroadError, unknown

UNIT = 4.0  # m
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True)
class Maze:
    """One drawing: `#` is a wall, `S` where evaluation starts, `G` its goal, `o` a goal of the data sets "play".

    The letters are those of D4RL (`maze_env.py`): its maps for generation have the `o`, those for evaluation the `G`.
    Where one cell is both, `x` stands for it.
    """

    name: str
    drawing: str

    @cached_property
    def letters(self) -> ndarray:
        return np.array([list(row) for row in self.drawing.split()])

    @cached_property
    def walls(self) -> Bool[ndarray, "rows columns"]:
        return self.letters == "#"

    @cached_property
    def free(self) -> Int[ndarray, "cells 2"]:
        """All free cells, row by row."""
        return np.argwhere(~self.walls)

    @property
    def start(self) -> tuple[int, int]:
        return self._cells("S")[0]

    @property
    def goal(self) -> tuple[int, int]:
        return self._cells("Gx")[0]

    @property
    def play_goals(self) -> list[tuple[int, int]]:
        return self._cells("ox")

    def _cells(self, letters: str) -> list[tuple[int, int]]:
        return [(int(i), int(j)) for i, j in np.argwhere(np.isin(self.letters, list(letters)))]

    def check_free(self, what: str, cell: Int[ndarray, "2"]) -> None:
        """Raises `OffroadError` if the cell is a wall or outside; `what` names it in the message."""
        if (cell < 0).any() or (cell >= self.walls.shape).any() or self.walls[tuple(cell)]:
            rows, columns = self.walls.shape
            raise OffroadError(
                f"{what} is {tuple(cell.tolist())}, which is no free cell of the maze '{self.name}' "
                f"({rows} rows, {columns} columns); expected one of {[tuple(c) for c in self.free.tolist()]}"
            )

    @cached_property
    def distances(self) -> Int[ndarray, "rows columns rows columns"]:
        """Steps between neighbouring cells on the shortest way from one cell to another; -1 where there is none."""
        distances = np.full(self.walls.shape * 2, -1)
        for goal in map(tuple, self.free.tolist()):
            distances[(*goal, *goal)] = 0
            queue = deque([goal])
            while queue:
                i, j = queue.popleft()
                for di, dj in MOVES:  # the border is wall everywhere
                    cell = (i + di, j + dj)
                    if not self.walls[cell] and distances[(*cell, *goal)] < 0:
                        distances[(*cell, *goal)] = distances[(i, j, *goal)] + 1
                        queue.append(cell)
        return distances

    @cached_property
    def _next(self) -> Int[ndarray, "rows columns rows columns 2"]:
        following = np.zeros((*self.walls.shape * 2, 2), int)
        for i, j in self.free.tolist():
            neighbours = [(i + di, j + dj) for di, dj in MOVES if not self.walls[i + di, j + dj]]
            far = np.array([self.distances[cell] for cell in neighbours])
            far = np.where(far < 0, far.size, far)  # walls as goals: whatever is chosen is not used
            following[i, j] = np.array(neighbours)[far.argmin(axis=0)]
            following[i, j, i, j] = i, j
        return following

    def next_cell(self, cell: Int[ndarray, "*batch 2"], goal: Int[ndarray, "*batch 2"]) -> Int[ndarray, "*batch 2"]:
        """The neighbour through which a shortest way from `cell` to `goal` leads; the goal itself when there."""
        return self._next[cell[..., 0], cell[..., 1], goal[..., 0], goal[..., 1]]


def centre(cell: Int[ndarray, "*batch 2"]) -> Float[ndarray, "*batch 2"]:
    """Where the middle of a cell is: x and y in metres."""
    return UNIT * (cell[..., ::-1] - 1.0)


def cell_at(xy: Float[ndarray, "*batch 2"]) -> Int[ndarray, "*batch 2"]:
    """The cell that a point (x, y) lies in."""
    return np.floor(xy[..., ::-1] / UNIT + 1.5).astype(int)


UMAZE = Maze(
    "umaze",
    """
    #####
    #S..#
    ###.#
    #x..#
    #####
    """,
)
MEDIUM = Maze(
    "medium",
    """
    ########
    #S.##..#
    #..#..o#
    ##...###
    #..#...#
    #o#..#.#
    #...#oG#
    ########
    """,
)
LARGE = Maze(
    "large",
    """
    ############
    #S...#o....#
    #.##.#.#.#.#
    #....o.#..o#
    #.####.###.#
    #.o#.#.....#
    ##.#.#.#.###
    #..#o.o#.x.#
    ############
    """,
)
MAZES = {maze.name: maze for maze in (UMAZE, MEDIUM, LARGE)}


def named(name: str) -> Maze:
    """The maze of a name in `MAZES`; raises `OffroadError` for others."""
    if name not in MAZES:
        raise unknown("maze", name, MAZES)
    return MAZES[name]
