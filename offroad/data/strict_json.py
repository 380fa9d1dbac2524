"""JSON that every reader accepts: RFC 8259 has no NaN and no infinity, and Python's writer emits them all the same."""

import json
import math
from typing import Any

import numpy as np


def strict(value: Any) -> Any:
    """The value in JSON's own types; a number that is not finite becomes "NaN", "Infinity" or "-Infinity".

    Python's `float(...)` and JavaScript's `Number(...)` turn these strings back into the number.
    """
    match value:
        case dict():
            return {str(k): strict(v) for k, v in value.items()}
        case list() | tuple():
            return [strict(v) for v in value]
        case np.ndarray() | np.generic():
            return strict(value.tolist())
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(strict(value), indent=indent, allow_nan=False)
