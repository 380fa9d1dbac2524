"""One package per claim. `load("traffic")` imports `offroad.studies.traffic`, and nothing heavy before that."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from offroad.errors import unknown

if TYPE_CHECKING:
    from offroad.studies.study import Study


def names() -> list[str]:
    """Every study: the modules of this package, but for the protocol itself."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "study" and not m.name.startswith("_"))


def load(name: str) -> "Study":
    """The study of that name: the `STUDY` of its module. Raises `OffroadError` if there is none."""
    if name not in names():
        raise unknown("study", name, names())
    return importlib.import_module(f"{__name__}.{name}").STUDY
