"""Arms that foretell: the error of each alternative on unseen noise in the air and on the ground, and gaits.

All are fitted to the same log of noise in the air, but for the whole-robot network, which needs contact.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from numpy import ndarray

from offroad.envs.hamr import HamrFull, drive
from offroad.envs.hamr import models as hamr
from offroad.models import FitConfig, Log, ResidualModel
from offroad.models.comparison import Step as AirStep
from offroad.models.comparison import corrected, fit_end_to_end, fit_physical, mean_squared_errors
from offroad.models.fitting import Problem, add_networks, fit_linear, fit_networks, prepare, tune_linear
from offroad.studies.residual import endtoend, robots
from offroad.studies.residual.robots import INTERVAL, Step
from offroad.studies.study import Budget, Context, Metrics, NotRun

HORIZONS = (1, 16, 64, 256)  # rows: 0.25, 4, 16 and 64 ms
SHARES = (0.25, 0.5, 1, 2)
"""Of the budget's log, for the curve over amounts of data."""
GROUND = ("trot 10 Hz", "trot 30 Hz", "trot 60 Hz", "noise")
TEST_SEED = 20_000


@dataclass(frozen=True, kw_only=True)
class ResidualBudget(Budget):
    seconds: float | int  # of log in air
    contact: float | int  # seconds of log on the ground, for the network of the whole robot; 0: left out
    gaits: int  # random ones that models rank; 0: left out
    updates: int  # of networks on single steps
    tuning: int  # updates on windows
    decisions: int  # of each run of PPO, over all worlds; 0 leaves control out
    worlds: int  # of PPO
    rollouts: int  # evaluated for each policy

    @property
    def config(self) -> FitConfig:
        return FitConfig(updates=self.updates, tuning=self.tuning)


@dataclass(frozen=True)
class Unseen:
    """What models are graded on, all of the full model at 0.05 ms."""

    air: Log
    ground: dict[str, dict[str, ndarray]]
    gaits: dict[str, ndarray]  # nothing if there are none


@dataclass(frozen=True)
class Trial:
    """What the arms of a seed share."""

    problem: Problem
    linear: ResidualModel
    tuned: ResidualModel
    seconds: float  # wall time, without that of the log


def unseen(budget: ResidualBudget, context: Context) -> Unseen:
    def compute() -> Unseen:
        context.progress("what is graded: the full model in the air, on the ground, and its gaits")
        volts = {f"trot {f} Hz": drive.sine("trot", 300, frequency=f) for f in (10, 30, 60)}
        volts["noise"] = drive.noise(np.random.default_rng(TEST_SEED + 1), 300, deviation=64, ramp=0)
        ground = {name: HamrFull.log(v, interval=INTERVAL, in_air=False) for name, v in volts.items()}
        gaits = {}
        if budget.gaits:
            gaits = HamrFull.log(robots.random_gaits(budget.gaits, TEST_SEED + 2), interval=INTERVAL, in_air=False)
        return Unseen(robots.air_log(TEST_SEED, 2), ground, gaits)

    return context.once("unseen", compute)


def trial(seed: int, budget: ResidualBudget, context: Context, seconds: float | int | None = None) -> Trial:
    """The fits of a seed to so many seconds of log, by default the budget's."""
    amount = budget.seconds if seconds is None else seconds

    def compute() -> Trial:
        context.progress(f"seed {seed}: {amount:g} s of the full model in the air")
        log = robots.air_log(seed, amount)
        context.progress(f"seed {seed}: linear identification")
        began = time.monotonic()
        problem = prepare(
            robots.hamr_simulator(), log, limbs=robots.hamr_limbs(), delay=0, config=budget.config, seed=seed
        )
        linear = fit_linear(problem)
        return Trial(problem, linear, tune_linear(problem, linear), time.monotonic() - began)

    return context.once(f"trial {seed} {amount}", compute)


def residual_fit(
    seed: int, budget: ResidualBudget, context: Context, seconds: float | int | None = None
) -> tuple[ResidualModel, float]:
    """The residual model, and what the whole fit took in seconds of wall time, without the log."""

    def compute() -> tuple[ResidualModel, float]:
        shared = trial(seed, budget, context, seconds)
        context.progress(f"seed {seed}: networks")
        began = time.monotonic()
        model = add_networks(shared.problem, shared.tuned)
        return model, shared.seconds + time.monotonic() - began

    return context.once(f"residual {seed} {seconds or budget.seconds}", compute)


def residual_model(
    seed: int, budget: ResidualBudget, context: Context, seconds: float | int | None = None
) -> ResidualModel:
    return residual_fit(seed, budget, context, seconds)[0]


def whole_robot(seed: int, budget: ResidualBudget, context: Context) -> endtoend.WholeRobot:
    if not budget.contact:
        raise NotRun("this profile has no log with contact")

    def compute() -> endtoend.WholeRobot:
        context.progress(f"seed {seed}: {budget.contact:g} s of the full model on the ground")
        log = endtoend.contact_log(budget.contact, seed)
        context.progress(f"seed {seed}: networks of the whole robot")
        return endtoend.fit_whole_robot(*log, budget.config, seed)

    return context.once(f"whole robot {seed}", compute)


# --- grades ----------------------------------------------------------------------------------------------------------


def in_air(step: AirStep, about: Unseen) -> dict[str, float]:
    """Errors of hip angles on unseen noise."""
    errors = mean_squared_errors(step, about.air, max(HORIZONS), 200)[0].mean(-1)
    return {f"air, {INTERVAL * h:g} ms [rad^2]": float(errors[h - 1]) for h in HORIZONS}


def on_ground(step: Step, about: Unseen) -> dict[str, float]:
    row = {}
    for name in GROUND:
        errors = robots.ground_errors(step, about.ground[name])
        row |= {f"ground, {name}, {INTERVAL * h:g} ms [rad^2]": float(errors[h - 1]) for h in (64, 256)}
    return row


def ranked(step: Step, about: Unseen) -> dict[str, float]:
    """How well the model foretells where random gaits lead."""
    if not about.gaits:
        return {}
    u = robots.inputs(about.gaits)
    path = robots.walked(step, robots.rest(len(u), hamr.simple()), u)
    return compared(robots.displacement(path), about)


def compared(found: dict[str, ndarray], about: Unseen) -> dict[str, float]:
    """Displacements of gaits held against those of the full model; a robot that is lost stood still."""
    true = robots.displacement(robots.states_of(about.gaits, hamr.simple()))
    found = {name: np.nan_to_num(value) for name, value in found.items()}
    rmse = float(np.sqrt(np.mean((found["x"] - true["x"]) ** 2)))
    return {
        "gaits: rank correlation of distance": rank_correlation(found["x"], true["x"]),
        "gaits: rank correlation of yaw": rank_correlation(found["yaw"], true["yaw"]),
        "gaits: error of distance [mm]": rmse,
    }


def rank_correlation(a: ndarray, b: ndarray) -> float:
    """Spearman's, without ties."""
    first, second = (np.argsort(np.argsort(x)) for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


# --- arms ------------------------------------------------------------------------------------------------------------


def arm(grade: Callable[[int, ResidualBudget, Context], dict[str, float]], about: str, *, first: bool = False) -> Any:
    """An arm of a row for each seed; of the first seed only where seeds change nothing or cost too much."""

    def run(seeds: list[int], budget: ResidualBudget, context: Context) -> Metrics:
        if first:
            context.seeds = seeds[:1]
        rows = [grade(seed, budget, context) for seed in context.seeds]
        return {name: [row[name] for row in rows] for name in rows[0]}

    run.__doc__ = about
    return run


def simple(constants: str) -> Callable[[int, ResidualBudget, Context], dict[str, float]]:
    def grade(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
        about = unseen(budget, context)
        step = robots.stepped(hamr.driven_by_voltage(hamr.simple(constants=constants), constants))
        air = in_air(corrected(robots.hamr_simulator(constants), None), about)
        return air | on_ground(step, about) | ranked(step, about)

    return grade


def told(choose: Callable[[int, ResidualBudget, Context], ResidualModel]) -> Any:
    def grade(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
        about, model = unseen(budget, context), choose(seed, budget, context)
        step = robots.stepped(hamr.driven_by_voltage(hamr.simple()), model)
        air = in_air(corrected(robots.hamr_simulator(), model), about)
        return air | on_ground(step, about) | ranked(step, about)

    return grade


def residual(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    return told(residual_model)(seed, budget, context) | {"fit [s]": residual_fit(seed, budget, context)[1]}


def physical(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    about, problem = unseen(budget, context), trial(seed, budget, context).problem
    _, seconds = residual_fit(seed, budget, context)
    context.progress(f"seed {seed}: physical identification")
    fitted, _ = fit_physical(problem, seconds)
    step = robots.stepped(robots.physically_like(fitted))
    return in_air(corrected(fitted, None), about) | on_ground(step, about) | ranked(step, about)


def network_in_air(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    about = unseen(budget, context)
    network = eqx.filter_jit(fit_end_to_end(trial(seed, budget, context).problem))
    hips = hamr.hip_matrix(hamr.simple())

    def legs(q: ndarray, qd: ndarray, u: ndarray) -> tuple[ndarray, ndarray]:
        after, speed = network(*(jnp.asarray(x, jnp.float32) for x in (q, qd, u)))
        return np.asarray(after, float), np.asarray(speed, float)

    def step(state: ndarray, u: ndarray) -> ndarray:
        after = state.copy()
        q, qd = legs(state[:, robots.LEGS_Q] @ hips.T, state[:, robots.LEGS_V] @ hips.T, u)
        after[:, robots.LEGS_Q], after[:, robots.LEGS_V] = q @ hips, qd @ hips
        return after

    return in_air(legs, about) | on_ground(step, about)  # it knows no body that could go anywhere


def network_on_ground(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    about = unseen(budget, context)
    step = endtoend.stepped(whole_robot(seed, budget, context))
    return on_ground(step, about) | ranked(step, about)


def coarse_full(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    about = unseen(budget, context)
    if not about.gaits:
        raise NotRun("this profile ranks no gaits")
    gaits = HamrFull.log(about.gaits["u"], interval=INTERVAL, dt=INTERVAL, in_air=False)
    return compared(robots.displacement(robots.states_of(gaits, hamr.simple())), about)


def amounts(seed: int, budget: ResidualBudget, context: Context) -> dict[str, float]:
    """3, 6, 12 and 24 s where the budget has 12: `offroad reproduce residual --profile cpu --arms amounts`."""
    if not budget.contact:
        raise NotRun("this profile has no budget for it")
    about, row = unseen(budget, context), {}
    for seconds in (share * budget.seconds for share in SHARES):
        shared = trial(seed, budget, context, seconds)
        network = eqx.filter_jit(fit_end_to_end(shared.problem))

        def alone(*x: ndarray, network: Any = network) -> tuple[ndarray, ndarray]:
            q, qd = network(*(jnp.asarray(v, jnp.float32) for v in x))
            return np.asarray(q, float), np.asarray(qd, float)

        air = robots.hamr_simulator()
        steps: dict[str, AirStep] = {
            "linear, windows": corrected(air, shared.tuned),
            "residual": corrected(air, residual_model(seed, budget, context, seconds)),
            "network": alone,
        }
        for name, step in steps.items():
            row[f"{name}, {seconds:g} s: air, 64 ms [rad^2]"] = in_air(step, about)["air, 64 ms [rad^2]"]
    return row


ARMS = {
    "simple, published": arm(simple("published"), "Constants of the public HAMRSimple.", first=True),
    "simple, summed springs": arm(simple("summed"), "Flexures summed as if each turned as the hip.", first=True),
    "simple, projected": arm(simple("projected"), "Flexures projected by the full model's Jacobian.", first=True),
    "physical identification": arm(physical, "Masses, dampers, springs, friction and gains, fitted to the log."),
    "linear identification": arm(
        told(lambda *x: trial(*x).linear), "A linear map of a leg's state and voltages to voltages."
    ),
    "linear identification, windows": arm(told(lambda *x: trial(*x).tuned), "The same, tuned on windows of 16 ms."),
    "residual, single steps": arm(
        told(lambda *x: fit_networks(trial(*x).problem, trial(*x).linear)),
        "Networks on top of the linear map, on single steps.",
    ),
    "residual": arm(residual, "Networks on the tuned linear map, tuned on windows as well."),
    "network, air": arm(network_in_air, "A network without simulator, of legs, trained in air on the same data."),
    "network, contact": arm(
        network_on_ground, "A network without simulator, of the whole robot, trained on the ground."
    ),
    "full, 0.25 ms": arm(
        coarse_full, "The full model with longer steps: as well as gaits can be foretold.", first=True
    ),
    "amounts": arm(amounts, "The same fits to a quarter, half and twice of the data; first seed.", first=True),
}
