"""Data sets from files: NumPy archives and folders, HDF5 as D4RL has it, Minari's local store, CSV and Parquet logs."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import jax
import numpy as np

from offroad.data import files, tables
from offroad.data.dataset import Dataset, as_flags, differ, flatten, nest
from offroad.data.files import Getters
from offroad.errors import OffroadError, unknown

ALIASES = {
    "observations": ("observations", "observation", "obs", "states", "state"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "terminals", "terminal", "terminations", "dones", "done"),
    "truncated": ("truncated", "timeouts", "timeout", "truncations"),
    "next_observations": ("next_observations", "next_observation", "next_obs", "next_states", "next_state"),
    "final_observations": ("final_observations",),
    "episode": ("episode", "episode_id", "session", "session_id"),
    "lengths": ("lengths", "length"),
    "propensities": ("propensities", "propensity", "propensity_score"),
    "info": ("info", "infos"),
}
"""The names under which each column is looked for when `load` is not told its name."""

Column = str | Sequence[str] | None


def load(
    path: str | Path, *, ends: Literal["terminated", "truncated"] | None = None, **columns: str | tuple[str, ...] | None
) -> Dataset:
    """The data set in a file or folder, whose kind its suffix or content tells:

    - `.npz`: arrays named like the columns below, entries of dict observations as `observations/objects`;
    - a folder that `save` wrote: the same as `.npy` files;
    - `.hdf5`, `.h5`: the same as HDF5; D4RL's files are of this kind;
    - a folder of Minari's local store, or its id such as `D4RL/door/human-v2` (see `read_minari`);
    - `.csv`, `.parquet`: a row for each step; an array of width d is d columns named `observations_0` and so on.

    Arrays of the first three kinds that are large and not compressed stay on the disk and are mapped (`MAP_ABOVE`).

    **Arguments:** `columns`: names in the file, of `observations`, `actions`, `rewards`, `terminated`, `truncated`,
    `next_observations`, `episode` (an id that is the same in all rows of an episode), `lengths` (steps of each
    episode), `propensities` and `info`; by default `ALIASES`. None: do not use it, whatever the file holds. A tuple of
    names is stacked into one array of that width (of `info`: kept apart). `ends`: what the end of an episode means
    where no flag is set there.

    An episode ends where it terminates, is truncated, its id changes, or the next observation is not that of the next
    row. What was decided is told in `Dataset.notes`. Raises `OffroadError` for what cannot be read. No file can
    execute code.
    """
    path = Path(path)
    if extra := sorted(columns.keys() - ALIASES.keys()):
        raise unknown("column", extra[0], ALIASES)
    folder = path if path.exists() else minari_root() / path
    if not folder.exists():
        raise OffroadError(f"the data set '{path}' does not exist; expected a file, a folder or the id of a Minari set")
    if folder.is_dir():
        inner = folder / "data" if (folder / "data").is_dir() else folder
        if (inner / "main_data.hdf5").exists() or (inner / "metadata.json").exists():
            if ends or columns:
                raise OffroadError(
                    f"'{folder}' is of Minari, which names all columns and ends; leave out columns and ends"
                )
            return read_minari(inner)
        if not (folder / "dataset.json").exists():
            raise OffroadError(
                f"the folder '{folder}' holds neither dataset.json, as written by offroad.data.writers.save, nor "
                "Minari's data/main_data.hdf5; name the data set's own folder"
            )
        path = folder
    kinds = {".npz": files.npz, ".csv": tables.csv, ".parquet": tables.parquet}
    kinds |= {"": _folder, ".hdf5": _hdf5, ".h5": _hdf5}
    kind = "" if path.is_dir() else path.suffix.lower()
    if kind not in kinds:
        raise OffroadError(f"'{path}' has the suffix {kind!r}; expected one of {', '.join(filter(None, kinds))}")
    with files.readable(path), kinds[kind](path) as getters:
        found = {}
        for name in ALIASES:
            given = name in columns
            column = columns[name] if given else next((a for a in ALIASES[name] if _holds(getters, a)), None)
            if column is not None:
                found[name] = _read(getters, column, apart=name == "info")
        return assemble(found, ends, str(path), sorted(getters))


def assemble(columns: dict[str, Any], ends: str | None, where: str, names: Sequence[str] = ()) -> Dataset:
    """A `Dataset` from the columns that a file has; what is missing is decided here, and noted."""
    notes: list[str] = []
    for name in ("observations", "actions", "rewards"):
        if name not in columns:
            among = f"name it: {name}=..., one of {', '.join(names)}" if names else "it holds no arrays at all"
            raise OffroadError(f"'{where}' has no column of {name}; {among}")
    for name, array in flatten({k: v for k, v in columns.items() if k not in ("episode", "info")}).items():
        if array.dtype.kind not in "biuf":
            raise OffroadError(
                f"{name!r} of '{where}' is of type {array.dtype}, expected numbers; encode it as numbers"
            )
    rewards = columns["rewards"]
    rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    steps = len(rewards) if rewards.ndim else 0
    if not steps:
        raise OffroadError(f"the data set '{where}' is empty; expected at least one row")
    for name, array in flatten(
        {k: v for k, v in columns.items() if k not in ("lengths", "final_observations")}
    ).items():
        if array.shape[:1] != (steps,) and not name.startswith("info/"):
            raise OffroadError(f"{name!r} of '{where}' has shape {array.shape}, but there are {steps} rewards")

    after = columns.get("next_observations")
    if after is not None:
        shapes = [{k: x.shape for k, x in flatten({"": c}).items()} for c in (columns["observations"], after)]
        if shapes[0] != shapes[1]:
            raise OffroadError(
                f"observations of '{where}' have shapes {shapes[0]}, next observations {shapes[1]}; expected the same"
            )

    last = _boundaries(columns, steps, where)
    named = [name for name in ("terminated", "truncated") if name in columns]
    flags = {name: as_flags(name, columns[name].reshape(steps)) for name in named}
    if not flags and ends is None:
        if last is None and "next_observations" not in columns:
            raise OffroadError(
                f"'{where}' does not tell where episodes end; name a column: terminated=, truncated= or episode="
            )
        if last is not None:
            raise OffroadError(
                f"'{where}' tells where episodes end but not how; say ends='terminated' (nothing was to come) or "
                "ends='truncated' (merely cut off)"
            )
    terminated = flags.get("terminated", np.zeros(steps, bool)).copy()
    truncated = flags.get("truncated", np.zeros(steps, bool)).copy()

    def end(rows: np.ndarray, why: str) -> None:
        rows = rows[~(terminated | truncated)[rows]]
        if len(rows):
            (terminated if ends == "terminated" else truncated)[rows] = True
            kind = ends or "truncated"
            notes.append(f"{len(rows)} {'row is' if len(rows) == 1 else 'rows are'} taken as {kind}: {why}")

    if last is not None:
        end(np.flatnonzero(last), "an episode ends there without a flag")
    if after is not None:
        inner = np.flatnonzero(~(terminated | truncated)[:-1])
        end(differ(after, columns["observations"], inner, inner + 1), "the next row is not what came next")
    end(np.array([steps - 1]), "the recording stops there")
    if "terminated" in flags and "truncated" not in flags:
        notes.append("the file has no flags of truncation (timeouts)")
    finals = columns.get("final_observations")
    if after is not None:
        rows = np.flatnonzero(terminated | truncated)
        finals = jax.tree.map(lambda x: x[rows], after)
    info = {k: x for k, x in flatten(columns.get("info", {})).items() if np.shape(x)[:1] == (steps,)}
    return Dataset(
        observations=columns["observations"],
        actions=columns["actions"],
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=finals,
        propensities=columns.get("propensities"),
        info=info,
        notes=tuple(notes),
    )


def _boundaries(columns: dict[str, Any], steps: int, where: str) -> np.ndarray | None:
    """Which rows are the last of their episode, by ids or lengths, if the file has either."""
    if "episode" in columns:
        ids = columns["episode"]
        return np.append(ids[1:] != ids[:-1], True)
    if "lengths" not in columns:
        return None
    lengths = columns["lengths"]
    if lengths.sum() != steps or lengths.min() < 1:
        raise OffroadError(f"the lengths in '{where}' add up to {lengths.sum()} steps, but there are {steps} rewards")
    if (lengths % 1).any():
        raise OffroadError(f"the lengths in '{where}' are {lengths}; expected whole numbers of steps")
    last = np.zeros(steps, bool)
    last[np.cumsum(lengths).astype(int) - 1] = True
    return last


# --- where arrays come from ------------------------------------------------------------------------------------------


@contextmanager
def _hdf5(path: Path) -> Iterator[Getters]:
    with h5py.File(path, "r") as file:
        found: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, x: found.update({name: x}) if isinstance(x, h5py.Dataset) else None)

        def read(array: h5py.Dataset) -> np.ndarray:
            offset = array.id.get_offset()  # None where it is in chunks, which it is if it is compressed
            special = file.userblock_size > 0 or array.dtype.kind not in "biuf"
            if offset is None or special or array.nbytes <= files.MAP_ABOVE:
                return array[()]
            return np.asarray(np.memmap(path, array.dtype, "r", offset, array.shape))

        yield {name: lambda array=array: read(array) for name, array in found.items()}


@contextmanager
def _folder(path: Path) -> Iterator[Getters]:
    if json.loads((path / "dataset.json").read_text()).get("format") != 1:
        raise OffroadError(f"the data set '{path}' was saved by another version of offroad")

    def read(file: Path) -> np.ndarray:
        mode = "r" if file.stat().st_size > files.MAP_ABOVE else None
        return np.asarray(np.load(file, mmap_mode=mode, allow_pickle=False))

    parts = {part.relative_to(path).with_suffix("").as_posix(): part for part in sorted(path.rglob("*.npy"))}
    yield {name: lambda part=part: read(part) for name, part in parts.items()}


def _holds(getters: Getters, name: str) -> bool:
    return name in getters or any(other.startswith(f"{name}/") for other in getters)


def _read(getters: Getters, column: str | Sequence[str], apart: bool) -> Any:
    """One array, a dict of those under a name, or several stacked side by side (or kept apart, by name)."""
    if not isinstance(column, str):
        parts = {name: _read(getters, name, apart=False) for name in column}
        return parts if apart else np.stack(list(parts.values()), axis=-1)
    if column in getters:
        return {column: getters[column]()} if apart else getters[column]()
    if not _holds(getters, column):
        raise unknown("column", column, getters)
    return nest({name[len(column) + 1 :]: get() for name, get in getters.items() if name.startswith(f"{column}/")})


# --- Minari ----------------------------------------------------------------------------------------------------------


def minari_root() -> Path:
    """Where Minari keeps its data sets on this machine."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))


def read_minari(folder: Path) -> Dataset:
    """A data set of Minari's local store, without Minari: `folder` holds `metadata.json` and `main_data.hdf5`.

    The layout is that of Minari 0.5 (and of 0.4): a group `episode_0` and so on for each episode with `observations` of
    one more row than `actions`, `rewards`, `terminations` and `truncations`; dicts are groups. Of `infos` numbers in
    groups are read, row t being what came with observation t; infos as JSON strings, of Minari 0.5, are left out.
    """
    with files.readable(folder / "metadata.json"):
        metadata = json.loads((folder / "metadata.json").read_text())
        kind = metadata.get("data_format", "hdf5")
    if kind != "hdf5":
        raise OffroadError(f"the Minari data set '{folder}' is stored as {kind}, expected hdf5; convert it with Minari")
    path = folder / "main_data.hdf5"
    with files.readable(path), h5py.File(path, "r") as file:
        count = metadata.get("total_episodes", len(file))
        if count != len(file) or not count:
            raise OffroadError(
                f"'{path}' holds {len(file)} episodes, its metadata.json tells of {count}; it is damaged"
            )
        episodes = [_minari_episode(file[f"episode_{i}"], f"'{path}', episode {i}") for i in range(count)]
        joined: dict[str, Any] = jax.tree.map(lambda *x: np.concatenate(x), *episodes)
    terminated, truncated = joined["terminations"], joined["truncations"]
    lengths = np.array([len(episode["rewards"]) for episode in episodes])
    if not lengths.any():
        raise OffroadError(f"the data set '{path}' is empty; expected at least one step")
    truncated[np.cumsum(lengths)[~(terminated | truncated)[np.cumsum(lengths) - 1]] - 1] = True
    # An episode has one more observation than steps, so that in the joined array its rows are shifted by its number.
    rows = np.arange(lengths.sum()) + np.repeat(np.arange(count), lengths)
    finals = rows[terminated | truncated] + 1
    return Dataset(
        observations=jax.tree.map(lambda x: x[rows], joined["observations"]),
        actions=joined["actions"],
        rewards=joined["rewards"],
        terminated=terminated,
        truncated=truncated,
        final_observations=jax.tree.map(lambda x: x[finals], joined["observations"]),
        info=flatten(joined["infos"]) if joined["infos"] else {},
    )


def _minari_episode(group: Any, where: str) -> dict[str, Any]:
    def read(node: Any) -> Any:
        return {name: read(x) for name, x in node.items()} if isinstance(node, h5py.Group) else node[()]

    episode = {
        name: read(group[name]) for name in ("observations", "actions", "rewards", "terminations", "truncations")
    }
    steps = len(episode["rewards"])
    for name, array in flatten(episode).items():
        if array.dtype.kind not in "biuf":
            raise OffroadError(f"{name!r} of {where} is of type {array.dtype}, expected numbers; JPEG is not read")
        rows = steps + name.startswith("observations")
        if array.shape[:1] != (rows,):
            raise OffroadError(f"{name!r} of {where} has shape {array.shape}; expected {rows} rows for {steps} rewards")
    infos = flatten(read(group["infos"])) if isinstance(group.get("infos"), h5py.Group) else {}
    kept = {
        k: x[:steps] for k, x in infos.items() if x.dtype.kind in "biuf" and x.shape[:1] in ((steps,), (steps + 1,))
    }
    return {**episode, "infos": kept}
