"""Taking apart and joining what Gymnasium's vector environments return: observations and infos of N worlds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool


def copied(observation: Any, where: Any = ...) -> Any:
    """A copy of the rows `where` in every array of an observation; of all without it."""
    if isinstance(observation, dict):
        return {name: copied(value, where) for name, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(copied(value, where) for value in observation)
    return observation[where].copy()


def overwrite(observation: Any, new: Any, where: Bool[np.ndarray, " N"]) -> None:
    """Replaces the rows `where` in every array of an observation by those of `new`."""
    if isinstance(observation, dict | tuple):
        for name in observation if isinstance(observation, dict) else range(len(observation)):
            overwrite(observation[name], new[name], where)
    else:
        observation[where] = new[where]


def only(info: Mapping[str, Any], which: Bool[np.ndarray, " N"]) -> dict[str, Any]:
    """Some worlds' part of an info, in Gymnasium's format: zeros or None elsewhere, `_name` tells who has a `name`.

    What is no array of N rows belongs to the whole batch and is kept as it is.
    """
    found: dict[str, Any] = {}
    for name, value in info.items():
        has = np.logical_and(info.get(f"_{name}", True), which)
        if _is_mask(name, info) or not has.any():
            continue
        if isinstance(value, Mapping):
            found[name] = only(value, has)
        elif np.shape(value)[:1] == which.shape:
            array = np.asarray(value)
            found[name] = np.full_like(array, None if array.dtype == object else 0)
            found[name][has] = array[has]
        else:
            found[name] = value
            continue
        found[f"_{name}"] = has
    return found


def merge(info: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Adds the info of some worlds, made by `only`, to that of others."""
    for name, value in new.items():
        if name not in info or (f"_{name}" not in new and not _is_mask(name, new)):
            info[name] = value
        elif isinstance(value, Mapping):
            merge(info[name], value)
        elif _is_mask(name, new):
            info[name] = info[name] | value
        else:
            has = new[f"_{name}"]
            info[name][has] = value[has]


def _is_mask(name: str, info: Mapping[str, Any]) -> bool:
    return name[:1] == "_" and name[1:] in info
