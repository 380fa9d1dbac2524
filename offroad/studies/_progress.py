"""What a study says while it runs."""

import time
from collections.abc import Mapping

import numpy as np
from rich.console import Console

from offroad.report import tables


class Progress:
    """Lines with an estimate of the time left: at first `seconds`, once some work is done what the clock says.

    `costs`: the arms that run, and what each costs relative to the others.
    """

    def __init__(self, costs: Mapping[str, float | int], seconds: float | int, console: Console):
        self._share = {arm: cost / sum(costs.values()) for arm, cost in costs.items()}
        self._prior = seconds
        self._console = console
        self._start = self._spoke = time.monotonic()
        self._done, self._arm, self._fraction = 0.0, "", 0.0

    def begin(self, arm: str) -> None:
        self._arm, self._fraction, self._spoke = arm, 0.0, -np.inf
        self.say("running")

    def end(self, message: str = "done") -> None:
        self._done += self._share[self._arm]
        self._fraction, self._spoke = 0.0, -np.inf
        self.say(message)

    def say(self, message: str, fraction: float | int | None = None) -> None:
        """At most one line in two seconds within an arm."""
        self._fraction = self._fraction if fraction is None else min(max(fraction, 0.0), 1.0)
        now = time.monotonic()
        if now - self._spoke < 2:
            return
        self._spoke = now
        done = self._done + self._share[self._arm] * self._fraction if self._done < 0.999 else 1.0
        elapsed = now - self._start
        left = elapsed * (1 - done) / done if done > 0.02 else max(self._prior - elapsed, 0.0)
        number = list(self._share).index(self._arm) + 1
        ending = f" (about {tables.duration(left)} left)" if done < 1 else ""
        self._console.print(
            f"[{number}/{len(self._share)}] {self._arm}: {message}{ending}", markup=False, highlight=False
        )
