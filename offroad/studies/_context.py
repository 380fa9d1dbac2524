"""What an arm of a study may use besides its seeds and budget: progress, curves, kept arrays, what arms share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Context:
    """What an arm may use besides its seeds and budget; `folder` is its own, for run folders and checkpoints.

    An arm that is too costly for all seeds sets `seeds` to those that it ran.
    """

    def __init__(self, out: Path, arm: str, seeds: list[int], shared: dict[str, Any], report: Callable[..., None]):
        self.seeds = seeds
        self.curves: dict[str, dict[str, list[float]]] = {}
        self.folder = out / "artefacts" / arm
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.npz"):  # of an earlier run into the same folder
            old.unlink()
        self._shared = shared
        self._report = report
        self._part = (0.0, 1.0)  # of the arm's work: where the present part begins, and how large it is

    def progress(self, message: str, fraction: float | int | None = None) -> None:
        """Says how far the arm, or the present one of its parts, is: `fraction` of its work, in [0, 1], sharpens the
        estimate of the time left."""
        start, size = self._part
        self._report(message, None if fraction is None else start + size * min(fraction, 1.0))

    def each(self, parts: Sequence[T]) -> Iterator[T]:
        """Goes through parts of equal cost, such as seeds; `progress` then speaks of the present part alone. Nests."""
        start, size = self._part
        for i, part in enumerate(parts):
            self._part = start + size * i / len(parts), size / len(parts)
            yield part
        self._part = start, size

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value that several arms need, such as a trained agent: the first arm that asks computes it."""
        if name not in self._shared:
            self._shared[name] = compute()
        return self._shared[name]

    def curve(self, name: str, step: Sequence[float | int], value: Sequence[float | int]) -> None:
        """Puts a learning curve into `results.json`, at 20 even steps; nothing where there is no point of it."""
        if len(step):
            at = np.linspace(step[0], step[-1], 20)
            self.curves[name] = {"step": at.tolist(), "value": np.interp(at, step, value).tolist()}

    def keep(self, name: str, **arrays: Any) -> None:
        """Saves arrays for the figures, which read them with `results.artefact(arm, name)`."""
        np.savez_compressed(self.folder / f"{name}.npz", allow_pickle=False, **arrays)
