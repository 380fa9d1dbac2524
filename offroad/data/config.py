"""Configurations as JSON and back: dataclasses of numbers, strings, tuples and other dataclasses."""

import dataclasses
import types
import typing
from typing import Any

from offroad.errors import OffroadError


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a dataclass; a nested dataclass carries its class name under `type`."""

    def value(x: Any) -> Any:
        if dataclasses.is_dataclass(x):
            return {"type": type(x).__name__, **to_json(x)}
        return list(x) if isinstance(x, tuple) else x

    return {field.name: value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_json(kind: type, saved: dict[str, Any]) -> Any:
    """The inverse of `to_json`. Only classes that appear in the annotations of `kind` can come out of it."""
    hints = typing.get_type_hints(kind)
    if extra := sorted(saved.keys() - hints.keys() - {"type"}):
        raise OffroadError(f"{kind.__name__} has no option {extra[0]!r}; it was saved by another version of offroad")

    def value(x: Any, hint: Any) -> Any:
        if isinstance(x, dict):
            allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            for choice in allowed:
                if getattr(choice, "__name__", None) == x.get("type"):
                    return from_json(choice, x)
            raise OffroadError(
                f"{kind.__name__} knows no {x.get('type')!r}; it was saved by another version of offroad"
            )
        return tuple(x) if isinstance(x, list) else x

    return kind(**{name: value(x, hints[name]) for name, x in saved.items() if name != "type"})
