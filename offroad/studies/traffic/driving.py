"""Drives on rings of every length, and what is measured on them."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from offroad.envs.ring_road.ring import RingRoad
from offroad.envs.ring_road.simulation import Trajectory, simulate, summary, uniform_flow
from offroad.studies.study import Budget, Context, Metrics

SEEN = (220.0, 230.0, 240.0, 250.0, 260.0, 270.0)  # ring lengths of training, m
UNSEEN = (210.0, 280.0, 290.0)
LENGTHS = tuple(sorted(SEEN + UNSEEN))
SECONDS, WINDOW = 300.0, 100.0  # each ring runs so long; the last part is measured
PICTURE = 260.0  # m, the ring of the pictures: that of Stern et al.'s experiment
SUMO_LENGTHS = (230.0, 260.0, 290.0)
TEST_KEY = 20_000  # noise of the evaluation, apart from all training seeds

SHARE, UNSEEN_SHARE = "share of uniform flow, seen lengths", "share of uniform flow, unseen lengths"
SPEED, STD = "speed at 260 m [m/s]", "speed std across cars, seen lengths [m/s]"
GAP = "smallest gap of the automated car [m]"


@dataclass(frozen=True, kw_only=True)
class TrafficBudget(Budget):
    decisions: int  # of each training run, 0.5 s each, summed over its rings
    rings: int  # evaluated for each length and seed
    sumo: bool  # whether the policies also drive in SUMO (the extra `sumo`)


def drive(ring: RingRoad, controller: Any, seed: int, rings: int, lengths: tuple[float, ...] = LENGTHS) -> Trajectory:
    """Every length `rings` times, with noise of its own for each ring and seed."""
    repeated = np.repeat(np.asarray(lengths, np.float32), rings)
    return simulate(ring, controller, repeated, jax.random.key(TEST_KEY + seed), SECONDS)


def measures(trajectory: Trajectory) -> dict[str, float]:
    """The numbers of the report. Mean speed alone hides stop-and-go and tailgating."""
    whole, end = summary(trajectory), summary(trajectory.between(SECONDS - WINDOW))
    attainable = np.array([uniform_flow(float(length)) for length in trajectory.length])
    share = end["mean_speed"] / attainable
    seen = np.isin(trajectory.length, SEEN)
    return {
        SHARE: share[seen].mean(),
        UNSEEN_SHARE: share[~seen].mean(),
        "worst share, seen lengths": min(share[trajectory.length == x].mean() for x in SEEN),
        SPEED: end["mean_speed"][trajectory.length == 260].mean(),
        STD: end["speed_std"][seen].mean(),
        GAP: whole["min_gap"].min(),
        "braking per km [s]": end["braking_per_km"][seen].mean(),
        "energy [J/(kg m)]": end["energy_per_metre"][seen].mean(),
    }


def by_length(trajectory: Trajectory) -> Float[np.ndarray, " lengths"]:
    speed = summary(trajectory.between(SECONDS - WINDOW))["mean_speed"]
    return np.array([speed[trajectory.length == x].mean() for x in LENGTHS])


def evaluated(
    ring: RingRoad, controllers: list[Any], seeds: list[int], budget: TrafficBudget, context: Context
) -> Metrics:
    """All measures of one controller a seed; keeps the speed at each length, and a trajectory for the pictures."""
    rows, speeds = [], []
    for seed, controller in zip(seeds, controllers):
        trajectory = drive(ring, controller, seed, budget.rings)
        rows.append(measures(trajectory))
        speeds.append(by_length(trajectory))
        context.progress(f"seed {seed} evaluated", (len(rows)) / len(seeds))
    context.keep("speed_by_length", length=np.array(LENGTHS), speed=np.array(speeds))
    return columns(rows)


def columns(rows: list[dict[str, float]]) -> Metrics:
    return {name: [row[name] for row in rows] for name in rows[0]}


def native(**options: Any) -> RingRoad:
    """The ring as controllers that command speeds expect it: ten commands a second, brakes and engine of a real car."""
    return RingRoad(sim_steps=1, max_acceleration=4.5, **options)
