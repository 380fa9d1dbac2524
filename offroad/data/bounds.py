"""Spaces of data whose environment is not at hand, guessed from what the data hold."""

from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces

from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError


def action_bounds(array: np.ndarray, spaces: Spaces | None = None) -> tuple[Any, Any, bool]:
    """Lowest and highest action, and whether they are known: the environment's bounds, or -1 and 1 where nearly all
    numbers lie between them, or the range of each column, a thousandth wider."""
    if spaces is not None and isinstance(spaces.action, gym_spaces.Box):
        return spaces.action.low, spaces.action.high, True
    finite = array[np.isfinite(array).reshape(len(array), -1).all(axis=1)]
    if not len(finite) or np.mean(np.abs(finite) <= 1) >= 0.9:
        return -1.0, 1.0, False
    low, high = finite.min(axis=0), finite.max(axis=0)
    wider = np.where(high > low, 1e-3 * (high - low), 1)
    return low - wider, high + wider, False


def guessed_spaces(dataset: Dataset) -> Spaces:
    """Unbounded observations, images as such; actions within `action_bounds`, or as many choices as were seen."""
    return Spaces(_observation(dataset.observations), _action(dataset.actions))


def _observation(tree: Any) -> gym_spaces.Space:
    if isinstance(tree, dict):
        return gym_spaces.Dict({name: _observation(inner) for name, inner in tree.items()})
    if tree.dtype.kind == "f":
        return gym_spaces.Box(-np.inf, np.inf, tree.shape[1:], tree.dtype.type)
    if tree.ndim == 1:
        return _choices(tree)
    return gym_spaces.Box(tree.min(), tree.max(), tree.shape[1:], tree.dtype.type)


def _action(actions: Any) -> gym_spaces.Space:
    if isinstance(actions, dict):
        raise OffroadError(
            f"the data set's actions are a dict of {', '.join(actions)}, expected one array; choose one of them"
        )
    if actions.dtype.kind != "f" and actions.ndim == 1:
        return _choices(actions)
    low, high, _ = action_bounds(actions)
    everywhere = np.zeros(actions.shape[1:], np.float32)
    return gym_spaces.Box(np.float32(low) + everywhere, np.float32(high) + everywhere)


def _choices(array: np.ndarray) -> gym_spaces.Discrete:
    """Numbered from 0 where nothing is below."""
    first = min(int(array.min()), 0)
    return gym_spaces.Discrete(int(array.max()) - first + 1, start=first)
