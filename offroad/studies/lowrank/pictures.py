"""The figures of the study."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from offroad.report import plots
from offroad.studies.lowrank.linear import INITIALISATIONS, NETWORKS, OPTIMISERS
from offroad.studies.lowrank.supervised import ARMS
from offroad.studies.study import Figure, Results


def _by_depth(
    r: Results, arm: str, names: dict[str, str], path: Path, ylabel: str, references: dict[str, float] | None = None
) -> Path:
    depths = r.config["depths"]
    curves = {label: np.array([r.values(arm, name.format(d)) for d in depths]) for label, name in names.items()}
    flat = {label: np.full(len(depths), value) for label, value in (references or {}).items()}
    return plots.lines(path, np.array(depths, float), curves, "factors (depth)", ylabel, flat)


def before(r: Results, folder: Path) -> Figure:
    names = {name: f"{name}, depth {{}}" for name in NETWORKS}
    path = _by_depth(r, "initial", names, folder / "initial.png", "effective rank [nats]")
    return Figure("Random networks", path, "The rank of the features of 128 random inputs, before any training.")


def after(r: Results, folder: Path) -> Figure:
    names = {kind: f"target 4, {kind}, depth {{}}: test" for kind in INITIALISATIONS}
    solutions = ("minimum norm", "nuclear norm")
    flat = {s: float(np.mean(r.values("closed_form", f"target 4, {s}: test"))) for s in solutions}
    path = _by_depth(r, "trained", names, folder / "least_squares.png", "test error", flat)
    return Figure("Least squares", path, "A target of rank 4 from 20 rows of 32 inputs, by initialisation.")


def by_optimiser(r: Results, folder: Path) -> Figure:
    names = {name: f"{name}, depth {{}}: rank" for name in OPTIMISERS}
    path = _by_depth(r, "optimisers", names, folder / "optimisers.png", "effective rank [nats]")
    return Figure("Optimisers", path, "The rank of solutions of an 8 x 8 problem with 5 rows.")


def dots(arm: str, metric: str, title: str, case: Callable[[Results], str]) -> Callable[[Results, Path], Figure]:
    def draw(r: Results, folder: Path) -> Figure:
        values = {name: r.values(arm, f"{name}, {case(r)}: {metric}") for name in ARMS}
        path = plots.dots(folder / f"{arm}.png", values, f"{metric}, {case(r)}")
        return Figure(title, path, "Every arm chose among three settings on data or seeds apart from these.")

    draw.__name__ = arm
    return draw
