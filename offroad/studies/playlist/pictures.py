"""The figures of the study, from its results only."""

from pathlib import Path

import numpy as np

from offroad.report import plots
from offroad.studies.playlist.listeners import VALUE
from offroad.studies.study import Figure, Results


def cost(r: Results, folder: Path) -> Figure:
    kept, logged = r.artefact("online", "cost"), r["behaviour"]
    songs = np.mean(logged["songs in the log [thousands]"]) * 1e3
    slope = np.divide(logged["sessions lost in the log"], songs)
    curves = {
        "double DQN, learning online": (kept["step"], kept["lost"]),
        "the safe policy, writing the log": (kept["step"], kept["step"][:, None] * slope),
    }
    path = plots.learning_curves(folder / "cost.png", curves, "sessions lost so far")
    return Figure("What learning costs", path, "Learning from the log loses none but those that the log had lost.")


def values(r: Results, folder: Path) -> Figure:
    arms = {arm: r.values(arm, VALUE) for arm in ("random", "behaviour", "online", "naive", "bc", "cql")}
    return Figure(
        "What is learnt", plots.dots(folder / "values.png", arms, VALUE), "On listeners that nobody learnt from."
    )


def ranking(r: Results, folder: Path) -> Figure:
    scores = {name: r.values("selection", f"rank correlation, {name}") for name in ("FQE", "WIS", "DR")}
    path = plots.dots(folder / "ranking.png", scores, "rank correlation with the true values")
    return Figure("Who ranks eight policies right", path, "From logs alone.")
