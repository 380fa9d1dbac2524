"""Short stretches of episodes, from which primitives are learnt."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from offroad.data.dataset import Dataset
from offroad.errors import OffroadError


class Window(eqx.Module):
    """`c` consecutive steps of one episode, or a batch of such. After a terminal its step is repeated, not valid."""

    observation: PyTree[Any]  # leaves [*batch, c, ...]
    action: Float[Any, "*batch c action"]
    valid: Bool[Any, "*batch c"]


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of `length` steps of a data set, one from every step on, so that they overlap.

    None crosses the end of an episode. An episode that terminates has shorter windows at its end, for there the
    episode ends in the middle of a primitive; in one that was merely cut off they are left out, as nobody knows how the
    primitive would have gone on. `train.offline` takes it as data: `sample` draws `Window`s.

    Raises `OffroadError` where no episode is as long as a window.
    """

    dataset: Dataset
    length: int = 10

    def __post_init__(self):
        actions = self.dataset.actions
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            raise OffroadError("primitives need a data set with vectors of real numbers as actions; use Box actions")
        if self.length < 1:
            raise OffroadError(f"the length of windows is {self.length}, expected at least 1 step")
        if not len(self.rows):
            raise OffroadError(
                f"no episode of the data set has a window of {self.length} steps, the longest has "
                f"{self.dataset.lengths.max()}; choose a smaller length"
            )

    @cached_property
    def rows(self) -> Int[np.ndarray, " windows"]:
        """The first row of every window."""
        data = self.dataset
        ends = np.repeat(data.ends, data.lengths)
        left = ends - np.arange(len(data)) + 1
        # What a window leads to must be known, unless it ends in a terminal.
        known = 0 if data.final_observations is not None else 1
        return np.flatnonzero(data.terminated[ends] | (left >= self.length + known))

    def __len__(self) -> int:
        return len(self.rows)

    def last(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The last row of the windows that begin in `rows`."""
        ends = self.dataset.ends
        return np.minimum(rows + self.length - 1, ends[np.searchsorted(ends, rows)])

    def at(self, rows: Int[np.ndarray, "*batch"]) -> Window:
        """The windows that begin in `rows`, with the same leading axes."""
        last = self.last(rows.reshape(-1)).reshape(*rows.shape, 1)
        steps = rows[..., None] + np.arange(self.length)
        kept = np.minimum(steps, last)
        observation, action = jax.tree.map(
            lambda x: np.asarray(x[kept]), (self.dataset.observations, self.dataset.actions)
        )
        return Window(observation, action, steps <= last)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Window:
        """Windows drawn uniformly with replacement, with leading axes `shape`."""
        return self.at(self.rows[rng.integers(len(self.rows), size=shape)])

    def returns(self, rows: Int[np.ndarray, " n"], discount: float | int) -> Float[np.ndarray, " n"]:
        """The discounted sum of rewards within the windows that begin in `rows`, in double precision."""
        total, last = np.zeros(len(rows)), self.last(rows)
        for age in range(self.length):
            inside = rows + age <= last
            total[inside] += np.float64(discount) ** age * self.dataset.rewards[rows[inside] + age]
        return total

    def chains(self) -> tuple[Int[np.ndarray, " windows"], Bool[np.ndarray, " windows"]]:
        """The first rows of all windows, in an order in which each goes on where the one before it stopped, and where
        such a chain ends. Every episode has as many chains as a window has steps.
        """
        data = self.dataset
        starts = data.starts[np.searchsorted(data.ends, self.rows)]
        chain = starts + (self.rows - starts) % self.length  # the row in which it begins
        order = np.lexsort((self.rows, chain))
        return self.rows[order], np.append(np.diff(chain[order]) != 0, True)
