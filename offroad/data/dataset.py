"""Data that exist already: episodes as arrays, from which any off-policy agent learns through `train.offline`.

```python
dataset = load("antmaze-medium-diverse.hdf5")
dataset.check(Spaces.of(env))
agent = train.offline(agent, dataset, updates=100_000).agent
```
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Float, Int, PyTree, Shaped

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError

Array = Shaped[np.ndarray, "..."]  # columns come from users: their shapes are checked, and told, at run time
Arrays = PyTree[Array]

PIECE = 65_536  # rows that are looked at together


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes one after another, every observation stored once.

    The observation that an action led to is the next row's, within an episode. What the last action of an episode led
    to is in `final_observations`; files in the layout of D4RL do not tell it. Where it is None, the last row of an
    episode that was cut off cannot be bootstrapped from and is left out of what is sampled, and that of an episode
    that terminated has its own observation as the next one, which no agent uses.

    Numbers of 64 bits become what JAX computes with, unless x64 is on; `propensities` and `info` stay as they are. One
    real number a row, as a column of a table gives it, is a vector of length one.
    Arrays may be memory-mapped. `dataclasses.replace(dataset, rewards=...)` changes one column and copies none.

    **Arguments:** `observations`, `actions`: leaves `[steps, ...]`, dicts allowed. `rewards` `[steps]`. `terminated`
    (the future is worth nothing) and `truncated` (merely cut off), flags `[steps]`: an episode ends where either is
    True; the last row must be an end. `final_observations`: leaves `[episodes, ...]`. `propensities` `[steps]`: with
    which probability (or density) the policy that was logged chose the action. `info`: any other columns
    `[steps, ...]`. `notes`: what a reader had to decide for itself.
    Raises `OffroadError` for an empty data set and for columns that do not fit together.
    """

    observations: Arrays
    actions: Arrays
    rewards: Array
    terminated: Array
    truncated: Array
    final_observations: Arrays | None = None
    propensities: Array | None = None
    info: dict[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # the class is frozen

        for name in ("observations", "actions", "final_observations"):
            put(name, jax.tree.map(_canonical, getattr(self, name)))
            if isinstance(one := getattr(self, name), np.ndarray) and one.ndim == 1 and one.dtype.kind == "f":
                put(name, one[:, None])
        put("rewards", _canonical(np.asarray(self.rewards) * np.float32(1)))  # integers become floats
        for name in ("terminated", "truncated"):
            put(name, as_flags(name, getattr(self, name)))
        if self.propensities is not None:
            put("propensities", np.asarray(self.propensities) * np.float32(1))
        put("info", {name: np.asarray(column) for name, column in self.info.items()})
        self._check_lengths()

    def _check_lengths(self) -> None:
        steps = self.rewards.shape[0] if self.rewards.ndim else 0
        if not steps:
            raise OffroadError("the data set is empty: it has no rows; expected at least one episode")
        for name, array in self.arrays().items():
            expected = len(self.ends) if name.startswith("final_observations") else steps
            what = "one row for each episode" if name.startswith("final_observations") else "one row for each reward"
            if array.shape[:1] != (expected,):
                raise OffroadError(f"the data set's {name!r} has shape {array.shape}, expected {what}: {expected}")
            if array.ndim != 1 and name in ("rewards", "terminated", "truncated", "propensities"):
                raise OffroadError(f"the data set's {name!r} has shape {array.shape}, expected {(steps,)}")
        if self.ends[-1] != steps - 1:
            raise OffroadError(
                "the last row of the data set ends no episode; set truncated there if the recording was cut off"
            )
        if self.final_observations is not None:
            rows, finals = (_shapes("", tree) for tree in (self.observations, self.final_observations))
            if rows != finals:
                raise OffroadError(f"final observations have shapes {finals}, observations {rows}; expected the same")

    @classmethod
    def of_transitions(cls, transitions: Transition) -> "Dataset":
        """Consecutive transitions `[steps]`, as of `Demonstrations.transitions`, every next observation known."""
        columns = jax.tree.map(np.asarray, transitions)
        ends = np.flatnonzero(columns.terminated | columns.truncated)
        inner = np.setdiff1d(np.arange(len(columns.reward) - 1), ends)
        apart = differ(columns.next_observation, columns.observation, inner, inner + 1)
        if apart.size:
            raise OffroadError(
                f"the next observation of transition {apart[0]} is not the observation of transition {apart[0] + 1}; "
                "expected consecutive transitions, truncated where something was left out"
            )
        return cls(
            observations=columns.observation,
            actions=columns.action,
            rewards=columns.reward,
            terminated=columns.terminated,
            truncated=columns.truncated,
            final_observations=jax.tree.map(lambda x: x[ends], columns.next_observation),
        )

    def __len__(self) -> int:
        """Steps in all; `len(dataset.rows)` of them are sampled."""
        return len(self.rewards)

    @cached_property
    def ends(self) -> Int[np.ndarray, " episodes"]:
        """The last row of each episode."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def starts(self) -> Int[np.ndarray, " episodes"]:
        """The first row of each episode."""
        return np.append(0, self.ends[:-1] + 1)

    @property
    def lengths(self) -> Int[np.ndarray, " episodes"]:
        return np.diff(self.ends, prepend=-1)

    @cached_property
    def rows(self) -> Int[np.ndarray, " sampled"]:
        """The rows that are sampled: all whose next observation is known or does not matter."""
        if self.final_observations is not None:
            return np.arange(len(self))
        return np.flatnonzero(self.terminated | ~self.truncated)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        """Transitions drawn uniformly with replacement, with leading axes `shape`, as a `Replay` draws them."""
        if not len(self.rows):
            raise OffroadError(
                "no row of the data set can be sampled: every one is cut off and its final observation is unknown; "
                "give next observations, or terminated instead of truncated"
            )
        return self.transitions(self.rows[rng.integers(len(self.rows), size=shape)])

    def transitions(self, rows: Int[np.ndarray, "*batch"]) -> Transition:
        """These rows as transitions with the same leading axes, the next actions among them.

        Where an episode ends there is no next action: the row's own stands in its place.
        """
        last = self.terminated[rows] | self.truncated[rows]
        following = np.where(last, rows, rows + 1)
        after = jax.tree.map(lambda x: np.asarray(x[following]), self.observations)
        if self.final_observations is not None and last.any():
            episodes = np.searchsorted(self.ends, rows[last])

            def put(x: np.ndarray, final: np.ndarray) -> None:
                x[last] = final[episodes]

            jax.tree.map(put, after, self.final_observations)
        return Transition(
            observation=jax.tree.map(lambda x: np.asarray(x[rows]), self.observations),
            action=jax.tree.map(lambda x: np.asarray(x[rows]), self.actions),
            reward=self.rewards[rows],
            next_observation=after,
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            next_action=jax.tree.map(lambda x: np.asarray(x[following]), self.actions),
        )

    def episodes(self) -> Iterator[Transition]:
        """The episodes one by one, each with leaves `[its length, ...]`."""
        for start, end in zip(self.starts.tolist(), self.ends.tolist()):
            yield self.transitions(np.arange(start, end + 1))

    def returns(self, discount: float | int = 1) -> Float[np.ndarray, " episodes"]:
        """The (discounted) sum of rewards of each episode, in double precision."""
        ages = np.arange(len(self)) - np.repeat(self.starts, self.lengths)
        weights = np.float64(discount) ** ages
        return np.add.reduceat(self.rewards * weights, self.starts)

    def take(self, episodes: slice | Int[np.ndarray, " some"]) -> "Dataset":
        """These episodes in this order. A slice of neighbours copies nothing, so that mapped arrays stay mapped."""
        chosen = np.arange(len(self.ends))[episodes]
        if not len(chosen):
            raise OffroadError(f"no episode was chosen of the data set's {len(self.ends)}; expected at least one")
        starts, stops = self.starts[chosen].tolist(), (self.ends[chosen] + 1).tolist()
        if isinstance(episodes, slice) and np.all(np.diff(chosen) == 1):
            rows: Any = slice(starts[0], stops[-1])
        else:
            rows = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops)])
        part = episodes if isinstance(episodes, slice) else chosen
        return replace(
            self,
            observations=jax.tree.map(lambda x: x[rows], self.observations),
            actions=jax.tree.map(lambda x: x[rows], self.actions),
            rewards=self.rewards[rows],
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            final_observations=jax.tree.map(lambda x: x[part], self.final_observations),
            propensities=None if self.propensities is None else self.propensities[rows],
            info={name: column[rows] for name, column in self.info.items()},
        )

    def top(self, fraction: float | int) -> "Dataset":
        """The share of episodes with the highest returns, at least one, in their old order: for 10 %-BC."""
        if not 0 < fraction <= 1:
            raise OffroadError(f"the fraction of best episodes is {fraction}, expected a number above 0 and up to 1")
        keep = max(round(fraction * len(self.ends)), 1)
        return self.take(np.sort(np.argsort(-self.returns(), kind="stable")[:keep]))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, entries of dicts as `observations/objects`."""
        names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations", "propensities")
        found = {name: getattr(self, name) for name in (*names, "info")}
        return flatten({name: value for name, value in found.items() if value is not None})

    def check(self, spaces: Spaces) -> None:
        """Raises `OffroadError`, naming the array and both shapes, if observations or actions are not of `spaces`."""
        if isinstance(spaces.action, gym_spaces.Discrete):
            self._check_whole(spaces.action)
        for name, space in (("observations", spaces.observation), ("actions", spaces.action)):
            found, expected = _shapes(name, getattr(self, name)), _space_shapes(name, space)
            for part in sorted(found.keys() | expected.keys()):
                if found.get(part) != expected.get(part):
                    raise OffroadError(
                        f"the data set has for {part!r} {_described(found.get(part))} per row, the environment has "
                        f"{_described(expected.get(part))}; use the environment that the data are from"
                    )

    def check_numbers(self, action_space: gym_spaces.Space | None = None) -> None:
        """Raises `OffroadError`, naming the array and the row, where a number to learn from is NaN or infinite; with an
        `action_space`, also where actions are beyond its bounds, other choices than it has, or no whole numbers."""
        for name, array in self.arrays().items():
            if array.dtype.kind != "f" or name.startswith(("info/", "propensities")):
                continue
            for start in range(0, len(array), PIECE):  # of what may be mapped from the disk
                good = np.isfinite(array[start : start + PIECE]).all(axis=tuple(range(1, array.ndim)))
                if not good.all():
                    raise OffroadError(
                        f"row {start + int(np.argmin(good))} of {name!r} is NaN or infinite; leave out its episode "
                        "(`offroad data inspect` counts such rows)"
                    )
        if isinstance(action_space, gym_spaces.Box):
            self._check_bounds(action_space)
        if isinstance(action_space, gym_spaces.Discrete):
            expected = self._check_whole(action_space)
            low, high = int(self.actions.min()), int(self.actions.max())
            if low < action_space.start or high >= action_space.start + action_space.n:
                raise OffroadError(f"the data set's actions go from {low} to {high}; {expected}")

    def _check_whole(self, space: gym_spaces.Discrete) -> str:
        """**Returns:** what is expected of choices in `space`, for other errors."""
        first, last = int(space.start), int(space.start + space.n - 1)
        expected = f"expected whole numbers from {first} to {last}, the environment's choices"
        if isinstance(self.actions, np.ndarray) and not np.issubdtype(self.actions.dtype, np.integer):
            raise OffroadError(f"the data set's actions are of type {self.actions.dtype}; {expected}")
        return expected

    def _check_bounds(self, space: gym_spaces.Box) -> None:
        slack = np.where(space.bounded_below & space.bounded_above, 1e-5 * (space.high - space.low), 0)  # of rounding
        for start in range(0, len(self), PIECE):
            actions = self.actions[start : start + PIECE]
            beyond = (actions < space.low - slack) | (actions > space.high + slack)
            if beyond.any():
                row, *where = np.unravel_index(np.argmax(beyond), beyond.shape)
                low, high = space.low[tuple(where)], space.high[tuple(where)]
                raise OffroadError(
                    f"row {start + int(row)} of 'actions' holds {actions[(row, *where)]:g}, beyond the bounds {low:g} "
                    f"to {high:g}; clip them: replace(dataset, actions=np.clip(dataset.actions, space.low, space.high))"
                )


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a nested dict by names like `observations/objects`."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): tree}
    return {name: x for key, inner in tree.items() for name, x in flatten(inner, f"{prefix}{key}/").items()}


def nest(arrays: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return tree


def differ(
    a: Arrays, b: Arrays, rows: Int[np.ndarray, " n"], others: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " some"]:
    """Those of `rows` in which `a` is not what `b` is in the row beside it in `others`; NaN equals NaN."""
    apart = np.zeros(len(rows), bool)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = x[rows].reshape(len(rows), -1), y[others].reshape(len(rows), -1)
        apart |= ~((x == y) | ((x != x) & (y != y))).all(axis=1)
    return rows[apart]


def _canonical(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def as_flags(name: str, flags: Any) -> np.ndarray:
    flags = np.asarray(flags)
    if flags.dtype == bool:
        return flags
    if bad := [x for x in np.unique(flags).tolist() if x not in (0, 1)]:
        raise OffroadError(f"{name!r} contains {bad[0]}; expected flags: 0 or 1, False or True")
    return flags.astype(bool)


def _shapes(name: str, tree: Any) -> dict[str, tuple[int, ...]]:
    return {part: np.shape(x)[1:] for part, x in flatten({name: tree}).items()}


def _space_shapes(name: str, space: gym_spaces.Space) -> dict[str, tuple[int, ...]]:
    if isinstance(space, gym_spaces.Dict):
        return {part: s for key, sub in space.items() for part, s in _space_shapes(f"{name}/{key}", sub).items()}
    return {name: space.shape or ()}


def _described(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {shape}"
