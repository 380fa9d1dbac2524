"""The table as pictures, one a task."""

from collections.abc import Callable
from pathlib import Path

from offroad.report import plots
from offroad.studies.study import Figure, NotRun, Results


def scores(domain: str) -> Callable[[Results, Path], Figure]:
    """Every method in one task, a dot for each seed."""

    def draw(r: Results, folder: Path) -> Figure:
        found = {arm: r[arm][f"{domain}: score"] for arm in r.arms if f"{domain}: score" in r[arm]}
        if not found:
            raise NotRun(f"{domain} is not in this profile")
        path = plots.dots(folder / f"{domain}.png", found, "score")
        caption = f"{r.config['episodes']} episodes a seed, the last policy of each run; 100 solves every one."
        return Figure(domain, path, caption)

    draw.__name__ = f"scores_{domain}"
    return draw
