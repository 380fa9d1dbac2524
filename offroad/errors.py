"""Errors that a user can mend: one sentence that names the thing, what was found, what was expected and the mend."""

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any


class OffroadError(Exception):
    """Bad input or a bad environment. The command line prints its message without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> OffroadError:
    """The error for a name that does not exist, with the nearest one that does.

    Returns the error instead of raising it, so that callers write `raise unknown(...)` and type checkers see the exit.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return OffroadError(f"unknown {kind} {name!r}; {hint}")


UNEXPECTED = re.compile(r"(?:([\w.]+)\(\) )?got an unexpected keyword argument '(\w+)'")
CALLERS = {"offroad", "gymnasium.envs.registration"}
NOT_OPTIONS = {"self", "num_envs", "autoreset_mode"}


def unknown_option(id: str, error: BaseException, fixed: set[str]) -> OffroadError | None:
    """The error that names the options of the environment `id`, if `error` is about one that nobody took.

    Makers often pass options on. Whoever passed the unknown one has options of its own, and who refused it has the
    rest. `fixed` are those that the id stands for.
    """
    found = UNEXPECTED.match(str(error))
    if found is None:
        return None
    refused, name = (found[1] or "").partition(".")[0], found[2]
    options: set[str] = set()
    for frame in _frames(error):
        own = inspect.getargs(frame.f_code)
        passed_on = own.varkw and name in frame.f_locals.get(own.varkw, ())
        if passed_on and frame.f_globals["__name__"] not in CALLERS:
            options |= set(own.args)
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            if inspect.isclass(value) or inspect.isfunction(value):
                options |= _parameters(value, refused)
    known = ", ".join(sorted(options - fixed - NOT_OPTIONS)) or "none"
    return OffroadError(f"environment {id!r} has no option {name!r}; its options: {known}")


def _frames(error: BaseException | None) -> Iterator[FrameType]:
    """Of the error and its causes."""
    while error is not None:
        yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        error = error.__cause__


def _parameters(maker: Any, refused: str) -> set[str]:
    """What the function or class of that name has defaults for; a class may have inherited how it is made."""
    kinds = maker.__mro__ if inspect.isclass(maker) else (maker,)
    for kind in kinds:
        if kind.__qualname__ == refused:
            signature = inspect.signature(kind)
            return {p.name for p in signature.parameters.values() if p.default is not p.empty}
    return set()
