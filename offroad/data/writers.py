"""Data sets into files, in every format that `readers.load` reads."""

import json
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
from gymnasium import spaces as gym_spaces

from offroad.data import tables
from offroad.data.dataset import Dataset, flatten
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError


def save(dataset: Dataset, path: str | Path) -> None:
    """Writes the data set in the format that the suffix tells: `.npz` (compressed), `.hdf5` or `.h5` (the names of
    D4RL), `.csv`, `.parquet`, or none: a folder of `.npy` files, which `load` maps into memory where they are large.

    `load` returns the same arrays from all of them. Tables repeat every observation as the next one where final
    observations are known. Raises `OffroadError` if the folder exists already.
    """
    path = Path(path)
    match path.suffix.lower():
        case "":
            _save_folder(dataset, path)
        case ".npz":
            np.savez_compressed(path, allow_pickle=False, **dataset.arrays())  # pyright: ignore[reportArgumentType]
        case ".hdf5" | ".h5":
            names = {"terminated": "terminals", "truncated": "timeouts"}
            with h5py.File(path, "w") as file:
                for name, array in dataset.arrays().items():
                    name = name.replace("info/", "infos/", 1) if name.startswith("info/") else names.get(name, name)
                    file.create_dataset(name, data=array, compression="gzip")
        case ".csv":
            tables.write_csv(path, _table(dataset))
        case ".parquet":
            tables.write_parquet(path, _table(dataset))
        case suffix:
            raise OffroadError(f"'{path}' has the suffix {suffix!r}; expected .npz, .hdf5, .csv, .parquet or none")


def _save_folder(dataset: Dataset, folder: Path) -> None:
    if folder.exists():
        raise OffroadError(f"'{folder}' exists already; choose another name or remove it")
    folder.mkdir(parents=True)
    for name, array in dataset.arrays().items():
        file = folder / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, array, allow_pickle=False)
    about = {"format": 1, "steps": len(dataset), "episodes": len(dataset.ends)}
    (folder / "dataset.json").write_text(json.dumps(about))  # last: without it the folder is no data set


def _table(dataset: Dataset) -> dict[str, np.ndarray]:
    arrays = {k: x for k, x in dataset.arrays().items() if not k.startswith("final_observations")}
    if dataset.final_observations is None:
        return arrays
    after = dataset.transitions(np.arange(len(dataset))).next_observation
    return {**arrays, **flatten({"next_observations": after})}


def save_minari(dataset: Dataset, folder: str | Path, spaces: Spaces) -> None:
    """Writes a data set that Minari 0.5 loads: `folder/data/metadata.json` and `main_data.hdf5`.

    `spaces` are those of the environment, which Minari keeps beside the data. Propensities and `info` are left out.
    Raises `OffroadError` where the final observations are unknown: Minari has one more observation than actions.
    """
    dataset.check(spaces)
    if dataset.final_observations is None:
        raise OffroadError("Minari stores final observations, which this data set does not know; save it as .hdf5")
    data = Path(folder) / "data"
    if data.exists():
        raise OffroadError(f"'{data}' exists already; choose another name or remove it")
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, episode in enumerate(dataset.episodes()):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": len(episode.reward)})
            observations = jax.tree.map(_with_last, episode.observation, episode.next_observation)
            columns = {"observations": observations, "actions": episode.action, "rewards": episode.reward}
            flags = {"terminations": episode.terminated, "truncations": episode.truncated}
            for name, array in flatten({**columns, **flags}).items():
                group.create_dataset(name, data=array)
    about = {
        "total_episodes": len(dataset.ends),
        "total_steps": len(dataset),
        "data_format": "hdf5",
        "observation_space": json.dumps(_minari_space(spaces.observation)),
        "action_space": json.dumps(_minari_space(spaces.action)),
        "dataset_id": Path(folder).name,
        "minari_version": "0.5.4",
    }
    (data / "metadata.json").write_text(json.dumps(about))


def _with_last(observations: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.concatenate([observations, after[-1:]])


def _minari_space(space: gym_spaces.Space) -> dict[str, Any]:
    match space:
        case gym_spaces.Box():
            bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
            return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
        case gym_spaces.Discrete():
            return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
        case gym_spaces.Dict():
            return {"type": "Dict", "subspaces": {key: _minari_space(sub) for key, sub in space.items()}}
    raise OffroadError(f"Minari does not store a space of the kind {type(space).__name__}; save the data as .npz")
