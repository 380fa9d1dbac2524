"""A data set that an environment's recipe has made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from offroad.errors import OffroadError


def require_rows(steps: int) -> None:
    """Raises `OffroadError` unless there is something to make."""
    if steps < 1:
        raise OffroadError(f"a data set of {steps} steps was asked for; expected at least 1")


@dataclass(frozen=True)
class Made:
    """A data set as the arrays of `offroad.data.Dataset`, what it was made by, and one line on what it holds."""

    columns: dict[str, ndarray]
    provenance: dict[str, Any]
    summary: str

    def save(self, path: str | Path) -> None:
        """Writes an `.npz` that `offroad.data.readers.load` reads; its entry `provenance` is JSON."""
        about = np.array(json.dumps(self.provenance))
        np.savez_compressed(path, allow_pickle=False, provenance=about, **self.columns)
