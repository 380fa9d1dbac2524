"""The figures of the study, from kept trajectories and curves."""

from pathlib import Path

import numpy as np

from offroad.envs.ring_road.simulation import flow_bound, uniform_flow
from offroad.report import plots, video
from offroad.studies.study import Figure, NotRun, Results
from offroad.studies.traffic.driving import LENGTHS, PICTURE, SECONDS


def animation(r: Results, folder: Path) -> Figure:
    rings = []
    for name, title in (("off", "AV off"), ("on", "AV on after 300 s")):
        kept = r.artefact("ppo", name)
        on = (kept["time"] > SECONDS) & (name == "on")
        rings.append(video.Ring(title, kept["position"], kept["speed"], PICTURE, on))
    path = video.ring_animation(folder / "ring.gif", rings, dt=0.5, limit_mb=0.8)
    return Figure(
        "The talk's ring", path, "22 cars on 260 m, ten minutes in twelve seconds, with and without automation."
    )


def space_time(r: Results, folder: Path) -> Figure:
    kept = r.artefact("ppo", "on")
    path = plots.space_time(
        folder / "space_time.png", kept["position"], kept["speed"], PICTURE, 0.5, highlight=0, switched_on=SECONDS
    )
    caption = "Every car's way along the ring. The jam travels backwards until the automated car is switched on."
    return Figure("Space-time diagram", path, caption)


def speeds(r: Results, folder: Path) -> Figure:
    curves = {}
    for arm in r.arms:
        try:
            curves[arm] = r.artefact(arm, "speed_by_length")["speed"].T
        except NotRun:
            continue
    lines = {
        "uniform flow (attainable)": np.array([uniform_flow(x) for x in LENGTHS]),
        "Flow's bound (not attainable)": np.array([flow_bound(x) for x in LENGTHS]),
    }
    path = plots.lines(
        folder / "speeds.png", np.array(LENGTHS), curves, "ring length [m]", "mean speed in the last 100 s [m/s]", lines
    )
    return Figure("Speed against density", path, "Training saw 220 to 270 m; 210, 280 and 290 m are new.")


def learning(r: Results, folder: Path) -> Figure:
    curves = {}
    for arm in ("ppo", "residual", "ppo_without_failsafe"):
        if arm in r.arms:
            kept = r.artefact(arm, "curve")
            curves[arm] = (kept["step"], kept["speed"])
    if not curves:
        raise NotRun("no arm that learns was run")
    path = plots.learning_curves(folder / "learning.png", curves, "mean speed while training [m/s]")
    return Figure("Learning", path, "All lengths together, exploration included.")
