"""Published data sets that people have as files: recognised by their checksums, with what is peculiar about them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from offroad.data.dataset import Dataset


@dataclass(frozen=True)
class Known:
    """`name`: of the data set. `rewards`: what they mean where that is not obvious. `only_cut_off`: whether its
    terminal rows merely mark where recordings stopped."""

    name: str
    rewards: str
    only_cut_off: bool

    def remarks(self, dataset: Dataset) -> list[str]:
        """A line on each peculiarity that a user of the data set as it was loaded has to mind."""
        lines = [f"this is {self.name}: {self.rewards}"]
        if self.only_cut_off and dataset.terminated.any():
            lines.append(
                f"this is {self.name}: its terminal rows only mark where recordings stopped; load with "
                "truncated='terminals', terminated=None"
            )
        return lines


def _kitchen(tasks: str) -> Known:
    counted = (
        "rewards count the target subtasks that are satisfied at that moment, whereas the environment pays 1 once for "
        "each; the sum of an episode's rewards is no score"
    )
    return Known(f"D4RL's kitchen-{tasks}-v0", counted, only_cut_off=True)


CHECKSUMS = {
    "cd797c38cd52dfbe3f960cef73935cc724847abd189e47a703a7a2315ed60a81": _kitchen("complete"),
    "57bfd9c5fe88a7cf702bbaf8b7cd800d30cd869e7f73416007238d26cd859800": _kitchen("partial"),
    "a30382a50278fdaea2e2d88e5f2836a95bcf9b581d252617872fd6537302721b": _kitchen("mixed"),
}
"""SHA-256 of the files as they were published."""


def recognise(file: Path) -> Known | None:
    """Which published data set a file is, to the byte; None for any other, and for folders."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return CHECKSUMS.get(hashlib.file_digest(stream, "sha256").hexdigest())
