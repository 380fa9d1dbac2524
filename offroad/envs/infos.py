"""Gymnasium's vector format of `info`: zeros for the worlds that have no value, and masks of those that have one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

Observation = Shaped[ndarray, "N ..."] | dict[str, Any]


def add_info(info: dict[str, Any], values: Mapping[str, ndarray], which: Bool[ndarray, "N"]) -> None:
    """Adds some worlds' values in Gymnasium's vector format: zeros elsewhere, and a mask `_name` of who has one."""
    if not which.any():
        return
    whole = which.all()
    for name, value in values.items():
        if whole:
            info[name], info[f"_{name}"] = value.copy(), which
        else:
            array = info.setdefault(name, np.zeros_like(value))
            array[which] = value[which]
            info[f"_{name}"] = info.get(f"_{name}", False) | which


def add_final(
    info: dict[str, Any], observation: Observation, values: Mapping[str, ndarray], ended: Bool[ndarray, "N"]
) -> None:
    """Adds what SAME_STEP resets overwrite, in Gymnasium's vector format."""
    final = np.full(len(ended), None, dtype=object)
    for world in np.flatnonzero(ended):
        final[world] = row(observation, world)
    info["final_obs"], info["_final_obs"] = final, ended.copy()
    info["final_info"], info["_final_info"] = {}, ended.copy()
    add_info(info["final_info"], values, ended)


def row(observation: Observation, world: int | np.integer) -> Any:
    """What one world observed, as arrays of its own."""
    if isinstance(observation, dict):
        return {name: value[world].copy() for name, value in observation.items()}
    return observation[world].copy()


def first(info: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a single environment from that of a batch of one."""
    return {name: value[0] for name, value in info.items() if not name.startswith("_")}
