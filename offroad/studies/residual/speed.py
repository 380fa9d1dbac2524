"""Arms that are timed: what a physics step costs in each model, one world at a time and 64, and how far it errs.

Errors are those after 64 ms of all models over the same windows: set on the true path, which is the full model's at
0.01 ms under unseen noise in the air, and let go. CPU time is that of walking on the ground, networks included.

    offroad reproduce residual --profile cpu --arms "cost, full, 0.25 ms" "cost, full, 0.125 ms" "cost, full, 0.05 ms" \
        "cost, simple, 0.25 ms" "cost, simple, 0.05 ms" "cost, residual, 0.25 ms"
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import time
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offroad.envs.hamr import HamrFull, HamrSimple, drive
from offroad.envs.hamr import models as hamr
from offroad.envs.hamr.geometry import REST
from offroad.envs.physics import PHYSICS, RolloutPhysics, cores
from offroad.models import simulator
from offroad.models.comparison import corrected, mean_squared_errors
from offroad.studies.residual import robots
from offroad.studies.residual.robots import INTERVAL
from offroad.studies.residual.tables import HORIZONS, TEST_SEED, ResidualBudget, arm, residual_model
from offroad.studies.study import Context, Results

TRUE = 0.01  # ms: the full model that all are held against
SECONDS = 2
WINDOWS = 200
BATCH = 64  # worlds
MEASURED = 160  # rows
ERROR, PAID = "air, 64 ms, same windows [rad^2]", f"{BATCH} worlds: CPU [us per ms]"
FULL_STEPS, SIMPLE_STEPS = (0.25, 0.125, 0.05), (0.25, 0.05)  # ms


def truth(context: Context) -> dict[str, ndarray]:
    def compute() -> dict[str, ndarray]:
        context.progress(f"the full model at {TRUE} ms")
        volts = drive.noise(np.random.default_rng(TEST_SEED + 4), 1e3 * SECONDS)
        return HamrFull.log(volts, interval=INTERVAL, dt=TRUE)

    return context.once("truth", compute)


def full_error(model: mujoco.MjModel, true: dict[str, ndarray]) -> float:
    """The squared error of hip angles after the longest horizon, over the windows of `mean_squared_errors`."""
    horizon = max(HORIZONS)
    starts = robots.log_of(true).windows(horizon, WINDOWS)
    state = np.zeros((len(starts), mujoco.mj_stateSize(model, PHYSICS)))
    state[:, 0] = model.opt.timestep
    state[:, 1 : 1 + model.nq] = true["qpos"][starts]
    state[:, 1 + model.nq : 1 + model.nq + model.nv] = true["qvel"][starts]
    physics = RolloutPhysics([model] * len(starts), round(INTERVAL / model.opt.timestep), cores())
    for row in range(horizon):
        physics.step(state, true["u"][starts + row])
    physics.close()
    found = state[:, 1 : 1 + model.nq] @ hamr.hip_matrix(model).T
    return float(np.mean((found - true["q"][starts + horizon]) ** 2))


def full(dt: float) -> Callable[[int, ResidualBudget, Context], dict[str, float]]:
    def grade(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
        error = full_error(hamr.full(dt, in_air=True), truth(context))
        model = hamr.full(dt)
        return row(dt, error, lambda volts: drive.record(model, volts, interval=INTERVAL))

    return grade


def simple(dt: float, *, told: bool = False) -> Callable[[int, ResidualBudget, Context], dict[str, float]]:
    def grade(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
        correction = residual_model(seed, budget, context) if told else None
        air = simulator(HamrSimple(dt=dt)).with_dt(INTERVAL)
        log = robots.log_of(truth(context))
        error = mean_squared_errors(corrected(air, correction), log, max(HORIZONS), WINDOWS)[0][-1].mean()
        model = hamr.driven_by_voltage(hamr.simple(dt))
        step = robots.stepped(model, correction)
        return row(
            dt, float(error), lambda volts: robots.walked(step, robots.rest(len(volts), model), (volts - REST) / REST)
        )

    return grade


def row(dt: float, error: float, run: Callable[[Float[ndarray, "N T 8"]], Any]) -> dict[str, float]:
    """A line of the table: CPU time of a step, and of a millisecond, of one of the worlds."""
    found = {"physics step [ms]": dt, ERROR: error}
    for worlds, name in ((1, "1 world"), (BATCH, f"{BATCH} worlds")):
        volts = robots.random_gaits(worlds, TEST_SEED + 3)[:, :MEASURED]
        paid = timed(lambda volts=volts: run(volts)) / (worlds * MEASURED * INTERVAL)
        found |= {f"{name}: CPU [us per step]": paid * dt, f"{name}: CPU [us per ms]": paid}
    return found


def timed(run: Callable[[], Any], repeats: int = 3) -> float:
    """Microseconds of CPU, the least of some runs; the first one compiles."""
    found = []
    for _ in range(repeats + 1):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return 1e6 * min(found[1:])


def at_matched_error(results: Results) -> float:
    """CPU time of the cheapest full model that errs no more than the residual one, relative to it; NaN if none does."""
    ours = f"cost, residual, {INTERVAL:g} ms"
    error, paid = (results.values(ours, name)[0] for name in (ERROR, PAID))
    full = [f"cost, full, {dt:g} ms" for dt in FULL_STEPS]
    enough = [results.values(name, PAID)[0] for name in full if results.values(name, ERROR)[0] <= error]
    return min(enough, default=float("nan")) / paid


ARMS = (
    {f"cost, full, {dt:g} ms": arm(full(dt), "CPU time and error of the full model.", first=True) for dt in FULL_STEPS}
    | {f"cost, simple, {dt:g} ms": arm(simple(dt), "Of the simple model.", first=True) for dt in SIMPLE_STEPS}
    | {
        f"cost, residual, {INTERVAL:g} ms": arm(
            simple(INTERVAL, told=True), "Of the simple model with the networks that correct it.", first=True
        )
    }
)
