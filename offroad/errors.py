"""Errors that a user can mend: one sentence that names the thing, what was found, what was expected and the mend."""

import difflib
from collections.abc import Iterable


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
