"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows steps, steps per second, the time left and the main score, on the standard output.

    A resumed run gives the step that it starts from, which does not count towards its speed. A context manager.
    """

    def __init__(self, total: int, start: int = 0, console: Console | None = None):
        self._total, self._start, self._step, self._score = total, start, start, ""
        self._began = self._printed = time.monotonic()
        self._console = console or Console()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
        score = TextColumn("{task.fields[score]}")
        self._bar = Bar(*columns, score, console=self._console) if self._console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total, completed=start, speed="", score="")

    def update(self, step: int, score: float | None = None) -> None:
        """`step` environment steps are done; `score`, where it is known, replaces the one that is shown."""
        self._step = step
        if score is not None:
            self._score = f"score {score:.4g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=f"{self._speed():,.0f} steps/s", score=self._score)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print()

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()

    def _speed(self) -> float:
        return (self._step - self._start) / max(time.monotonic() - self._began, 1e-9)

    def _print(self) -> None:
        speed = self._speed()
        left = f"{(self._total - self._step) / speed / 60:.1f} min left" if speed else ""
        parts = [f"step {self._step:,} of {self._total:,}", f"{speed:,.0f} steps/s", left, self._score]
        self._console.print("  ".join(part for part in parts if part), highlight=False)
        self._printed = time.monotonic()
