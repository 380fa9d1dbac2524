"""Logs of a robot: joint positions, velocities and inputs at equal intervals, read from files and made fit for use.

Shapes: T rows, n joints, m inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.signal import savgol_coeffs, savgol_filter

from offroad.data import files, tables
from offroad.errors import OffroadError

GAP = 1.5
"""Two rows further apart than this many typical intervals are a gap."""
WINDOWS = (5, 7, 9, 13, 17, 25, 33, 49)
"""The lengths in rows that filters try."""


@dataclass(frozen=True)
class Log:
    """What a robot did. Row t of `u` was applied from row t of `q`, `qd` until the next one, `dt` later.

    Rows of one `episode` are consecutive in time; nothing is known of what happened between episodes. Units are the
    simulator's own.
    """

    q: Float[ndarray, "T n"]
    qd: Float[ndarray, "T n"]
    u: Float[ndarray, "T m"]
    dt: float
    episode: Int[ndarray, "T"]
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """The length of all episodes together."""
        return len(self.starts(1)) * self.dt

    def starts(self, steps: int) -> Int[ndarray, "starts"]:
        """The rows that are followed by at least `steps` rows of their own episode."""
        rows = np.arange(max(len(self.q) - steps, 0))
        return rows[self.episode[rows] == self.episode[rows + steps]]

    def windows(self, steps: int, count: int) -> Int[ndarray, "starts"]:
        """At most `count` of these rows, evenly spread."""
        starts = self.starts(steps)
        return starts[np.unique(np.linspace(0, max(len(starts) - 1, 0), count).astype(int))] if len(starts) else starts

    def rows(self, which: ndarray) -> "Log":
        """The log of these rows only, by index or mask."""
        return replace(self, q=self.q[which], qd=self.qd[which], u=self.u[which], episode=self.episode[which])

    def split(self, share: float = 0.2) -> tuple["Log", "Log"]:
        """The log without, and of, the last `share` of every episode."""
        _, first, length = np.unique(self.episode, return_index=True, return_counts=True)
        place = np.arange(len(self.q)) - np.repeat(first, length)
        late = place >= np.repeat(np.ceil((1 - share) * length), length)
        return self.rows(~late), self.rows(late)

    def delayed(self, lag: int) -> "Log":
        """The log of a robot that acts at once: row t with the input of `lag` rows before; the first rows go."""
        kept = self.starts(lag) + lag
        return replace(self.rows(kept), u=self.u[kept - lag])


def make_log(
    q: ndarray,
    u: ndarray,
    qd: ndarray | None = None,
    *,
    time: ndarray | None = None,
    dt: float | int | None = None,
    episode: ndarray | None = None,
    gaps: str = "error",
    filtered: bool | None = None,
) -> Log:
    """A log from arrays of equal length: `q [T, n]`, `u [T, m]`, `qd [T, n]`, `time [T]`, `episode [T]`.

    Either `time` (of each row; jitter up to half an interval is resampled away) or `dt` is needed. Without `qd`,
    velocities are the filtered derivative of `q`. `filtered` smooths positions and velocities; by default where the
    noise of the sensors would drown what happens in one step. `gaps="split"` begins a new episode after a gap.

    Raises `OffroadError` for gaps, missing or non-finite numbers, and lengths that differ.
    """
    arrays = {"q": q, "u": u} | ({} if qd is None else {"qd": qd}) | ({} if time is None else {"time": time})
    arrays = {name: np.asarray(x, float) for name, x in arrays.items()}
    for name, x in arrays.items():
        if x.ndim != (1 if name == "time" else 2):
            expected = "a number for each row" if name == "time" else "[rows, numbers of a row]"
            raise OffroadError(f"{name} of the log has the shape {x.shape}, expected {expected}")
        if len(x) != len(arrays["q"]):
            raise OffroadError(f"the log has {len(arrays['q'])} rows of q but {len(x)} of {name}; expected as many")
        if bad := int((~np.isfinite(x)).sum()):
            first = int(np.argwhere(~np.isfinite(x))[0, 0])
            raise OffroadError(
                f"{name} of the log holds {bad} values that are missing or not finite (first in row {first}); "
                "drop these rows, or fill them in"
            )
    if not len(q):
        raise OffroadError("the log has no rows; expected one for each step")
    ids = np.zeros(len(q), int) if episode is None else np.unique(np.asarray(episode), return_inverse=True)[1]
    ids = np.cumsum(np.append(0, ids[1:] != ids[:-1]))
    notes: list[str] = []
    if time is not None:
        ids, dt = _intervals(arrays["time"], ids, gaps, notes)
    elif dt is None:
        raise OffroadError("the log has no column of times and no dt is given; name the column, time=..., or pass dt=")
    counts = np.unique(ids, return_counts=True)[1]
    if counts.max(initial=0) < max(WINDOWS):
        raise OffroadError(
            f"the longest episode of the log has {counts.max(initial=0)} rows; expected at least {max(WINDOWS)}"
        )
    if not dt > 0:
        raise OffroadError(f"the rows of the log are {dt} apart, expected a positive time")
    whole = np.isin(ids, np.flatnonzero(counts >= max(WINDOWS)))
    if not whole.all():
        notes.append(f"{int((~whole).sum())} rows in episodes shorter than {max(WINDOWS)} rows are left out")
        arrays, ids = {name: x[whole] for name, x in arrays.items()}, ids[whole]
    if time is not None:
        arrays, ids = _resampled(arrays, ids, float(dt), notes)
    log = Log(arrays["q"], arrays.get("qd", np.zeros_like(arrays["q"])), arrays["u"], float(dt), ids, tuple(notes))
    return _with_velocities(log, qd is not None, filtered)


def read_log(
    path: str | Path,
    *,
    q: str | Sequence[str] = "q",
    u: str | Sequence[str] = "u",
    qd: str | Sequence[str] | None = None,
    time: str | None = None,
    episode: str | None = None,
    dt: float | int | None = None,
    gaps: str = "error",
    filtered: bool | None = None,
) -> Log:
    """A log from a `.csv`, `.parquet` or `.npz` file; see `make_log`.

    By default the columns are `q_0`, `q_1`, ... and `u_0`, ... (in an npz file the arrays `q` and `u`), with `qd_0`,
    ..., `time` and `episode` where the file has them; a list of names takes these columns in this order.
    """
    path = Path(path)
    kinds = {".csv": tables.csv, ".parquet": tables.parquet, ".npz": files.npz}
    if not path.exists():
        raise OffroadError(f"the log '{path}' does not exist; expected a file: .csv, .parquet or .npz")
    if path.suffix not in kinds:
        raise OffroadError(f"the log '{path}' has the suffix {path.suffix!r}; expected .csv, .parquet or .npz")
    clock = "time" if dt is None and time is None else time
    wanted = {"q": (q, True), "u": (u, True), "qd": (qd or "qd", qd is not None)}
    wanted |= {"time": (clock, time is not None), "episode": (episode or "episode", episode is not None)}
    with files.readable(path), kinds[path.suffix](path) as getters:
        found = {
            role: _read(getters, path, name, matrix=role in ("q", "u", "qd"))
            for role, (name, needed) in wanted.items()
            if needed or (isinstance(name, str) and name in getters)
        }
    return make_log(found.pop("q"), found.pop("u"), dt=dt, gaps=gaps, filtered=filtered, **found)


def _read(getters: files.Getters, path: Path, names: str | Sequence[str] | None, matrix: bool) -> ndarray:
    """The column of that name, or several side by side."""
    several = [names] if isinstance(names, str) else list(names or ())
    arrays = []
    for name in several:
        if name not in getters:
            raise OffroadError(
                f"the log '{path}' has no column {name!r} (or {name}_0, {name}_1, ...); it has "
                f"{', '.join(sorted(getters))}: name the columns, for example q=('hip', 'knee'), u=('torque',)"
            )
        arrays.append(np.asarray(getters[name]()))
        if arrays[-1].dtype.kind not in "biuf":
            numbered = [x for x in getters if x.rpartition("_")[0] == name and x.rpartition("_")[2].isdigit()]
            word = next((x for x in numbered if np.asarray(getters[x]()).dtype.kind not in "biuf"), name)
            raise OffroadError(f"the column {word!r} of the log '{path}' holds words, expected numbers")
    found = arrays[0] if isinstance(names, str) else np.column_stack(arrays)
    return found[:, None] if matrix and found.ndim == 1 else found


def _intervals(time: ndarray, ids: ndarray, gaps: str, notes: list[str]) -> tuple[ndarray, float]:
    """Episodes that end at gaps too, and the interval of the log."""
    if gaps not in ("error", "split"):
        raise OffroadError(f"gaps is {gaps!r}, expected 'error' or 'split'")
    steps, same = np.diff(time), ids[1:] == ids[:-1]
    if not same.any():
        return ids, 0.0
    dt = float(np.median(steps[same]))
    if (steps[same] <= 0).any():
        row = int(np.flatnonzero(same & (steps <= 0))[0]) + 1
        raise OffroadError(
            f"time does not increase at row {row} of the log ({time[row - 1]:g}, then {time[row]:g}); sort the rows, "
            "or tell recordings apart by a column 'episode'"
        )
    wide = np.flatnonzero(same & (steps > GAP * dt))
    if len(wide) and gaps == "error":
        raise OffroadError(
            f"the log has {len(wide)} gap{'s' if len(wide) > 1 else ''} in time (first after row {wide[0]}: "
            f"{steps[wide[0]]:.4g} where rows are {dt:.4g} apart); record without gaps, or pass gaps='split' to "
            "begin a "
            "new episode after each"
        )
    if len(wide):
        notes.append(f"split at {len(wide)} gaps in time")
        ids = ids.copy()
        for row in wide:
            ids[row + 1 :] += 1
    within = ids[1:] == ids[:-1]
    return ids, float(np.mean(steps[within]))


def _resampled(
    arrays: dict[str, ndarray], ids: ndarray, dt: float, notes: list[str]
) -> tuple[dict[str, ndarray], ndarray]:
    """Equal intervals: q and qd interpolated, u held."""
    time = arrays["time"]
    steps = np.diff(time)[ids[1:] == ids[:-1]]
    if np.abs(steps - dt).max() < 1e-3 * dt:
        return arrays, ids
    parts: dict[str, list[ndarray]] = {name: [] for name in arrays}
    episodes = []
    for episode in np.unique(ids):
        rows = ids == episode
        grid = np.arange(time[rows][0], time[rows][-1] + 1e-9 * dt, dt)
        held = np.maximum(np.searchsorted(time[rows], grid + 1e-6 * dt, side="right") - 1, 0)
        for name, x in arrays.items():
            if name == "u":
                parts[name].append(x[rows][held])
            else:
                flat = x[rows].reshape(rows.sum(), -1)
                columns = np.column_stack([np.interp(grid, time[rows], c) for c in flat.T])
                parts[name].append(columns.reshape(-1, *x.shape[1:]))
        episodes.append(np.full(len(grid), episode))
    notes.append(f"rows are {steps.min():.4g} to {steps.max():.4g} apart: resampled to {dt:.4g}")
    return {name: np.concatenate(x) for name, x in parts.items()}, np.concatenate(episodes)


# --- derivatives and noise -------------------------------------------------------------------------------------------


def noise_of(x: Float[ndarray, "T n"]) -> Float[ndarray, "n"]:
    """The standard deviation of white noise on slow signals, from their third differences."""
    # Third differences of white noise of variance 1 have the variance 1 + 9 + 9 + 1. The median forgives rare jolts.
    return np.median(np.abs(np.diff(x, 3, axis=0)), axis=0) / 0.6745 / np.sqrt(20)


def derivative(x: Float[ndarray, "T n"], dt: float | int, order: int = 1) -> Float[ndarray, "T n"]:
    """The derivative of noisy signals (`order=0`: the signals, smoothed) by local cubic polynomials.

    Savitzky and Golay's filter, for each column with the longest window in `WINDOWS` whose estimate agrees with those
    of all shorter ones within their noise (Lepski's rule).
    """
    noise = noise_of(x)
    result = np.empty_like(x)
    for column, sigma in enumerate(noise):
        tried: list[tuple[ndarray, float]] = []
        for window in WINDOWS:
            if window > len(x):
                break
            estimate = np.asarray(savgol_filter(x[:, column], window, 3, deriv=order, delta=dt))
            spread = sigma * np.linalg.norm(savgol_coeffs(window, 3, deriv=order, delta=dt))
            if any(np.sqrt(np.mean((estimate - other) ** 2)) > 1.5 * width for other, width in tried):
                break
            tried.append((estimate, float(spread)))
        result[:, column] = tried[-1][0]
    return result


def _with_velocities(log: Log, measured: bool, filtered: bool | None) -> Log:
    q, qd, notes = log.q.copy(), log.qd.copy(), list(log.notes)
    if filtered is None:  # what happens in one step against the noise of its two ends
        signal = qd if measured else q
        noise = max(
            float(np.max(noise_of(x) / np.maximum(np.std(np.diff(x, axis=0), axis=0), 1e-300)))
            for x in (signal[log.episode == e] for e in np.unique(log.episode))
        )
        filtered = noise > 0.2
    for episode in np.unique(log.episode):
        rows = log.episode == episode
        if not measured:
            qd[rows] = derivative(log.q[rows], log.dt)
        elif filtered:
            qd[rows] = derivative(log.qd[rows], log.dt, order=0)
        if filtered:
            q[rows] = derivative(log.q[rows], log.dt, order=0)
    if not measured:
        notes.append("velocities are the filtered derivative of positions")
    if filtered:
        notes.append("positions and velocities are smoothed: sensor noise is large against one step")
    return replace(log, q=q, qd=qd, notes=tuple(notes))
