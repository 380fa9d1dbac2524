"""The figures of the report, from results and kept arrays only."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from offroad.report import maps, plots, video
from offroad.studies.curiosity.claims import CELLS, LEAD, rung_arm, weight_arm
from offroad.studies.curiosity.doom import EXPLORERS, LADDER
from offroad.studies.curiosity.rooms import WEIGHTS
from offroad.studies.curiosity.settings import STARTS
from offroad.studies.study import Figure, NotRun, Results

BEST = "d1_reachability"


def coverage_curves(r: Results, folder: Path) -> Figure:
    """Of the training, as the policy that is examined is the last one only."""
    runs = {arm: f"home_{method.bonus}" for arm, method in EXPLORERS.items() if method.place == "home"}
    curves = _curves(r, runs)
    references = {}
    if "d1_random" in r.arms:
        references["random"] = float(np.mean(r.values("d1_random", f"home: {CELLS}")))
    path = plots.learning_curves(folder / "coverage.png", curves, "cells per episode", references)
    return Figure("Coverage without reward", path, "Cells of 64 units in the last 50 episodes of training.")


def ranking(r: Results, folder: Path) -> Figure:
    rows = {name.removesuffix(f": {LEAD}"): values for name, values in r["d1_ranking"].items() if name.endswith(LEAD)}
    path = plots.dots(folder / "ranking.png", rows, "lead of wandering [standard deviations]", {"no lead": 0.0})
    caption = "By how much each bonus pays wandering more than circling and spinning; taught by random actions."
    return Figure("What a bonus would breed", path, caption)


def occupancy(r: Results, folder: Path) -> Figure:
    best, random = r.artefact(BEST, "map"), r.artefact("d1_random", "map")
    shown = {
        "random actions": random["random"],
        "its frequencies, blindly": best["blind"],
        "reachability": best["policy"],
    }
    for arm, title in (("d1_icm", "ICM"), ("d1_ceiling", "ceiling")):
        if arm in r.arms:
            shown[title] = r.artefact(arm, "map")["policy"]
    extent = tuple(best["extent"].tolist())
    path = maps.heat(folder / "occupancy.png", shown, best["walls"], extent, "decisions")
    return Figure("Where they were", path, "Exams of the first seed, the same number of episodes each.")


def animation(r: Results, folder: Path) -> Figure:
    frames = np.repeat(r.artefact(BEST, "film")["frames"][..., None], 3, -1)
    path = video.write(folder / "explorer.gif", list(frames), fps=12, limit_mb=1.2)  # which the report holds as text
    return Figure("The explorer", path, "One examined episode; a frame for each decision, three times as fast.")


def ladder(r: Results, folder: Path) -> Figure:
    rows = {
        f"{start}: {method}": r.values(rung_arm(method, start), "success")
        for start in STARTS
        for method in LADDER
        if rung_arm(method, start) in r.arms
    }
    caption = "Success of the last policy, each trained from its start with sparse reward; near starts first."
    return _dots(folder / "ladder.png", rows, "success", "The ladder of starts", caption)


def noise(r: Results, folder: Path) -> Figure:
    rows = {}
    for arm, title in (("d3_icm", "features"), ("d3_pixels", "pixels")):
        for kind in ("clean", "noise"):
            if arm in r.arms:
                rows[f"{title}, {kind}"] = r.values(arm, f"{kind}: success")
    return _dots(folder / "noise.png", rows, "success", "Noise over 40 % of the view", "Every dot is a seed.")


def balance(r: Results, folder: Path) -> Figure:
    arms = {weight_arm(weight): f"weight {weight:g}" for weight in WEIGHTS} | {"d5_eipo": "EIPO"}
    rows = {
        f"{kind}: {title}": r.values(arm, f"{kind}: return")
        for kind in ("easy", "hard")
        for arm, title in arms.items()
        if arm in r.arms
    }
    return _dots(folder / "balance.png", rows, "return", "When not to explore", "Policies for the task, MiniGrid.")


def television(r: Results, folder: Path) -> Figure:
    rows = {arm.removeprefix("d6_"): r.values(arm, "share of switching") for arm in r.arms if arm.startswith("d6_")}
    caption = "What share of its decisions a policy spends on switching channels, after learning without reward."
    return _dots(folder / "television.png", rows, "share of switching", "A television", caption)


def platformer(r: Results, folder: Path) -> Figure:
    arms = [arm for arm in r.arms if arm.startswith("d7_")]
    rows = {
        f"{kind}: {arm.removeprefix('d7_')}": r[arm][f"{kind}: distance"]
        for kind in ("train", "test", "night")
        for arm in arms
        if f"{kind}: distance" in r[arm]
    }
    caption = "Tiles, of 175.5. Night: the test levels in other shades; finetuned and scratch learnt there."
    return _dots(folder / "platformer.png", rows, "distance", "The platformer without reward", caption)


def _curves(r: Results, runs: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves of each arm's seeds at common steps."""
    curves = {}
    for arm, name in runs.items():
        if arm in r.arms:
            kept = [r.curve(arm, f"{name}_{seed}") for seed in r.arms[arm]["seeds"]]
            at = np.linspace(max(steps[0] for steps, _ in kept), min(steps[-1] for steps, _ in kept), 20)
            curves[arm.split("_", 1)[1]] = at, np.array([np.interp(at, *run) for run in kept]).T
    _need(curves)
    return curves


def _dots(path: Path, rows: Mapping[str, list[float]], label: str, title: str, caption: str) -> Figure:
    _need(rows)
    return Figure(title, plots.dots(path, rows, label), caption)


def _need(rows: Mapping[str, object]) -> None:
    if not rows:
        raise NotRun("none of its arms was run")
