"""Count-based bonuses: 1 / sqrt(how often a state was reached), for small spaces and for a few columns of large ones.

The classic of exploration in small worlds (Strehl and Littman 2008) and the yardstick for the others: where you can
count, count.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.rewards.intrinsic import BonusScale, IntrinsicReward, Scaling
from offroad.rewards.memory import EpisodeMemory, walk

LARGEST = 10_000_000
"""Cells of a table, of 4 bytes each."""


@dataclass(frozen=True)
class CountsConfig:
    """Discrete observations are counted as they are, one-dimensional boxes in a grid."""

    bins: int = 10  # of every column of a box
    columns: tuple[int, ...] = ()  # which entries of a box are counted; empty: all
    low: tuple[float | int, ...] = ()  # of these columns; empty: the space's own bounds
    high: tuple[float | int, ...] = ()
    episodic: bool = False  # count within each episode instead of over all time
    scaling: Scaling = field(default_factory=Scaling)


class Counts(IntrinsicReward):
    """The bonus of reaching a cell that was reached n times before is 1 / sqrt(n + 1).

    Over all time, n is what was known before the rollout: every step of it is paid by the same table, so the order of
    the environments does not matter. Within an episode it is exact to the step.
    """

    table: Int[Array, " cells"]
    memory: PyTree[Array]
    scale: BonusScale
    spaces: Spaces = eqx.field(static=True)
    config: CountsConfig = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, config: CountsConfig, key: Key[Array, ""]) -> "Counts":
        cells = _cells(spaces.observation, config)
        total = cells * (spaces.num_envs if config.episodic else 1)
        if total > LARGEST:
            raise OffroadError(
                f"counting {spaces.observation} takes {total} cells, more than {LARGEST}; use fewer bins or columns, "
                "or another reward"
            )
        reward = cls(
            table=jnp.zeros(0 if config.episodic else cells, jnp.int32),
            memory=(),
            scale=BonusScale.create(spaces.num_envs),
            spaces=spaces,
            config=config,
        )
        return replace(reward, memory=reward.initial_memory(spaces.num_envs))

    def initial_memory(self, num_envs: int) -> PyTree[Array]:
        if not self.config.episodic:
            return ()
        cells = _cells(self.spaces.observation, self.config)
        return EpisodeMemory(jnp.zeros((num_envs, cells), jnp.int32), jnp.ones(num_envs, bool))

    def bonus(
        self, steps: Transition, mask: Bool[Array, "T N"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "T N"], PyTree[Array]]:
        if not self.config.episodic:
            return jax.lax.rsqrt(1.0 + self.table[self.cell(steps.next_observation)]), ()

        def visit(table: Array, cell: Array, t: Array) -> tuple[Array, Array]:
            rows = jnp.arange(cell.shape[0])
            return jax.lax.rsqrt(1.0 + table[rows, cell]), table.at[rows, cell].add(1)

        before, after = self.cell(steps.observation), self.cell(steps.next_observation)
        return walk(self.memory, self.initial_memory(mask.shape[1]).content, before, after, steps, mask, visit)

    def update(
        self, steps: Transition, mask: Bool[Any, "T N"], key: Key[Array, ""]
    ) -> tuple["Counts", dict[str, Float[Array, ""]]]:
        if self.config.episodic:
            return self, {}
        cell = self.cell(steps.next_observation)
        table = self.table.at[cell].add(jnp.asarray(mask).astype(jnp.int32))
        return replace(self, table=table), {"cells_seen": jnp.sum(table > 0).astype(jnp.float32)}

    def cell(self, observation: Any) -> Int[Array, "*batch"]:
        """The number of the cell that an observation falls into; outside the bounds the nearest one."""
        space, bins = self.spaces.observation, self.config.bins
        if isinstance(space, gym_spaces.Discrete):
            return jnp.asarray(observation) - int(space.start)
        columns, low, high = _grid(space, self.config)
        share = (jnp.asarray(observation)[..., columns] - low) / (high - low)
        index = jnp.clip(jnp.floor(share * bins).astype(jnp.int32), 0, bins - 1)
        return index @ (bins ** jnp.arange(len(columns)))


def _cells(space: gym_spaces.Space, config: CountsConfig) -> int:
    if isinstance(space, gym_spaces.Discrete):
        return int(space.n)
    return config.bins ** len(_grid(space, config)[0])


def _grid(space: gym_spaces.Space, config: CountsConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns that are counted and their bounds."""
    if not isinstance(space, gym_spaces.Box) or len(space.shape) != 1:
        raise OffroadError(
            f"counts know Discrete and one-dimensional Box observations, not {space}; use another reward"
        )
    columns = np.array(config.columns or range(space.shape[0]))
    if (beyond := columns[(columns < 0) | (columns >= space.shape[0])]).size or config.bins < 1:
        what = f"bins is {config.bins}" if config.bins < 1 else f"columns has {beyond[0]}"
        raise OffroadError(f"{what}; counts need at least 1 bin, and columns from 0 to {space.shape[0] - 1}")
    low = np.array(config.low, np.float32) if config.low else space.low[columns].astype(np.float32)
    high = np.array(config.high, np.float32) if config.high else space.high[columns].astype(np.float32)
    if not (len(low) == len(high) == len(columns) and np.isfinite(low).all() and np.isfinite(high).all()):
        raise OffroadError(
            f"counts need finite bounds of every column, found low {low} and high {high} for columns {columns}; "
            "give CountsConfig(columns=..., low=..., high=...)"
        )
    if (low >= high).any():
        raise OffroadError(f"counts need bounds with low < high, found low {low} and high {high}")
    return columns, low, high
