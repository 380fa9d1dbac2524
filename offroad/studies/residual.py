"""A wrong but fast simulator of HAMR, corrected by 12 s of the slow one."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout
from numpy import ndarray

from offroad.envs.hamr import HamrFull, drive
from offroad.envs.hamr import models as hamr
from offroad.envs.hamr.geometry import DOFS, FRONT, LEFT, LEGS, REST
from offroad.models import FitConfig, Limb, Log, MujocoSimulator, ResidualModel, make_log
from offroad.models.comparison import corrected, fit_end_to_end, mean_squared_errors
from offroad.models.fitting import Problem, add_networks, fit_linear, fit_networks, prepare, tune_linear
from offroad.models.identification import identify
from offroad.models.simulators import PHYSICS
from offroad.report import plots
from offroad.studies.study import (
    Budget,
    Claim,
    Context,
    Figure,
    Metrics,
    Published,
    Results,
    Study,
    at_least,
    at_most,
)

PAPER = "Gruenstein, Chen, Doshi, Agrawal, ICRA 2021, arXiv 2104.00631"
JOINTS = tuple(f"{leg}_{dof}" for leg in LEGS for dof in DOFS)
INTERVAL = 0.25  # ms, of the log and of the simple model's steps
HORIZONS = (1, 16, 64, 256)  # rows: 0.25, 4, 16 and 64 ms
GROUND = ("trot 10 Hz", "trot 30 Hz", "trot 60 Hz", "noise")
TEST_SEED = 20_000


@dataclass(frozen=True, kw_only=True)
class ResidualBudget(Budget):
    seconds: float | int  # of log in air
    config: FitConfig = field(default_factory=FitConfig)


# --- the two models --------------------------------------------------------------------------------------------------


def driven_by_voltage(model: mujoco.MjModel, constants: str = "projected") -> mujoco.MjModel:
    """A simple model whose controls are those of the full one, as actions in [-1, 1] from 0 to 225 V."""
    model.actuator_gainprm[:, 0] = -hamr.hip_constants(constants).torque * REST
    return model


def hamr_simulator(constants: str = "projected") -> MujocoSimulator:
    """The simple model in air as a simulator of the eight hip angles."""
    return MujocoSimulator(driven_by_voltage(hamr.simple(in_air=True, constants=constants), constants), JOINTS)


def hamr_limbs() -> tuple[Limb, ...]:
    """The four legs, mirrored onto the front left one: rotations about z and x, and voltages that make them."""
    limbs = []
    for leg in range(4):
        own = (2 * leg, 2 * leg + 1)
        signs = (float(FRONT[leg] * LEFT[leg]), float(LEFT[leg]))
        volts = tuple(float(s * np.sign(-hamr.hip_constants().torque[i])) for s, i in zip(signs, own))
        limbs.append(Limb(own, own, joint_signs=signs, input_signs=volts, control_signs=volts))
    return tuple(limbs)


def log_of(record: dict[str, ndarray]) -> Log:
    """A record of the full model as a log whose inputs are actions in [-1, 1]."""
    return make_log(record["q"], (record["u"] - REST) / REST, record["qd"], dt=INTERVAL)


# --- arms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What all arms of a seed share."""

    problem: Problem
    linear: ResidualModel
    tuned: ResidualModel
    test: Log
    ground: dict[str, dict[str, ndarray]]


def trial(seed: int, budget: ResidualBudget, context: Context) -> Trial:
    def air(random: np.random.Generator, seconds: float | int) -> Log:
        return log_of(HamrFull.log(drive.noise(random, 1e3 * seconds), interval=INTERVAL))

    def ground() -> dict[str, dict[str, ndarray]]:
        volts = {f"trot {f} Hz": drive.sine("trot", 300, frequency=f) for f in (10, 30, 60)}
        volts["noise"] = drive.noise(np.random.default_rng(TEST_SEED + 1), 300, deviation=64, ramp=0)
        return {name: HamrFull.log(v, interval=INTERVAL, in_air=False) for name, v in volts.items()}

    def compute() -> Trial:
        context.progress("a log of the full model in air")
        log = air(np.random.default_rng(seed), budget.seconds)
        context.progress("targets")
        problem = prepare(hamr_simulator(), log, limbs=hamr_limbs(), delay=0, config=budget.config, seed=seed)
        linear = fit_linear(problem)
        context.progress("linear map on windows")
        return Trial(
            problem,
            linear,
            tune_linear(problem, linear),
            context.once("test", lambda: air(np.random.default_rng(TEST_SEED), 2)),
            context.once("ground", ground),
        )

    return context.once(f"trial {seed}", compute)


Told = Callable[[ndarray, ndarray, ndarray], tuple[ndarray, ndarray]]


def ground_errors(
    model: mujoco.MjModel, told: Callable[..., Any] | None, record: dict[str, ndarray], horizon: int = 256
) -> ndarray:
    """Squared errors of hip angles `[horizon]` on the ground, a simple model set on the full one's path every 4 ms."""
    hips = hamr.hip_matrix(model)
    starts = np.arange(0, len(record["q"]) - horizon, 16)
    data = mujoco.MjData(model)
    state = np.zeros((len(starts), mujoco.mj_stateSize(model, PHYSICS)))
    base = slice(1, 8), slice(1 + model.nq, 7 + model.nq)
    legs = slice(8, 1 + model.nq), slice(7 + model.nq, 1 + model.nq + model.nv)
    state[:, base[0]], state[:, base[1]] = record["qpos"][starts, :7], record["qvel"][starts, :6]
    state[:, legs[0]], state[:, legs[1]] = record["q"][starts] @ hips, record["qd"][starts] @ hips
    actions, errors = (record["u"] - REST) / REST, []
    for t in range(horizon):
        u = actions[starts + t]
        if told is not None:
            q, qd = state[:, legs[0]] @ hips.T, state[:, legs[1]] @ hips.T
            u = np.asarray(told(*(jnp.asarray(x, jnp.float32) for x in (q, qd, u)))[0], float)
        after, _ = rollout.rollout(model, data, state, u[:, None])
        state = after[:, -1]
        wrong = np.nan_to_num(state[:, legs[0]] @ hips.T - record["q"][starts + t + 1], nan=1.0)
        errors.append(np.mean(np.minimum(wrong**2, 1.0)))
    return np.array(errors)


def graded(step: Any, on_ground: Callable[[dict[str, ndarray]], ndarray], shared: Trial) -> dict[str, float]:
    """The table's row: errors in rad^2 on unseen noise in air, and on the ground."""
    air = mean_squared_errors(step, shared.test, max(HORIZONS), 200)[0].mean(-1)
    row = {f"air, {INTERVAL * h:g} ms [rad^2]": float(air[h - 1]) for h in HORIZONS}
    for name in GROUND:
        errors = on_ground(shared.ground[name])
        row |= {f"ground, {name}, {INTERVAL * h:g} ms [rad^2]": float(errors[h - 1]) for h in (64, 256)}
    return row


def arm(grade: Callable[[Trial], dict[str, float]], about: str) -> Any:
    def run(seeds: list[int], budget: ResidualBudget, context: Context) -> Metrics:
        rows = [grade(trial(seed, budget, context)) for seed in seeds]
        return {name: [row[name] for row in rows] for name in rows[0]}

    run.__doc__ = about
    return run


def simple(constants: str) -> Callable[[Trial], dict[str, float]]:
    def grade(shared: Trial) -> dict[str, float]:
        on_ground = driven_by_voltage(hamr.simple(constants=constants), constants)
        step = corrected(hamr_simulator(constants), None)
        return graded(step, lambda record: ground_errors(on_ground, None, record), shared)

    return grade


def told(choose: Callable[[Trial], ResidualModel]) -> Callable[[Trial], dict[str, float]]:
    def grade(shared: Trial) -> dict[str, float]:
        model, on_ground = choose(shared), driven_by_voltage(hamr.simple())
        say = eqx.filter_jit(model)
        step = corrected(shared.problem.simulator, model)
        return graded(step, lambda record: ground_errors(on_ground, say, record), shared)

    return grade


def physical(shared: Trial) -> dict[str, float]:
    problem = shared.problem
    assert isinstance(problem.simulator, MujocoSimulator)
    fitted, _ = identify(problem.simulator, problem.log, limbs=problem.model.limbs, horizon=64)
    on_ground = copy.copy(driven_by_voltage(hamr.simple()))
    on_ground.body_mass[:], on_ground.body_inertia[:] = fitted.model.body_mass, fitted.model.body_inertia
    for name in ("dof_damping", "dof_armature", "dof_frictionloss"):
        getattr(on_ground, name)[6:] = getattr(fitted.model, name)
    on_ground.jnt_stiffness[1:] = fitted.model.jnt_stiffness
    on_ground.actuator_gainprm[:] = fitted.model.actuator_gainprm
    mujoco.mj_setConst(on_ground, mujoco.MjData(on_ground))
    return graded(corrected(fitted, None), lambda record: ground_errors(on_ground, None, record), shared)


def end_to_end(shared: Trial) -> dict[str, float]:
    network = eqx.filter_jit(fit_end_to_end(shared.problem))

    def step(*x: ndarray) -> tuple[ndarray, ...]:
        return tuple(np.asarray(v, float) for v in network(*(jnp.asarray(a, jnp.float32) for a in x)))

    def on_ground(record: dict[str, ndarray]) -> ndarray:
        log = make_log(record["q"], (record["u"] - REST) / REST, record["qd"], dt=INTERVAL, filtered=False)
        return mean_squared_errors(step, log, 256, 60)[0].mean(-1)  # pyright: ignore[reportArgumentType]

    return graded(step, on_ground, shared)


ARMS = {
    "simple, summed springs": arm(simple("summed"), "The simple model, flexures summed as if each turned as the hip."),
    "simple, published": arm(simple("published"), "The simple model with the constants of the public HAMRSimple."),
    "simple, projected": arm(simple("projected"), "The simple model, flexures projected by the full model's Jacobian."),
    "physical identification": arm(physical, "Its masses, dampers, springs, friction and gains, fitted to the log."),
    "linear identification": arm(told(lambda t: t.linear), "A linear map of a leg's state and voltages to voltages."),
    "linear identification, windows": arm(told(lambda t: t.tuned), "The same, tuned on windows of 16 ms."),
    "residual, single steps": arm(
        told(lambda t: fit_networks(t.problem, t.linear)), "Networks on top of the linear map, on single steps."
    ),
    "residual": arm(
        told(lambda t: add_networks(t.problem, t.tuned)), "Networks on the tuned linear map, tuned on windows as well."
    ),
    "end-to-end network": arm(end_to_end, "A network without simulator, trained in air on the same data."),
}


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict(r: Results) -> list[Claim]:
    far = "air, 64 ms [rad^2]"

    def below(claim: str, other: str, metric: str, factor: float) -> Claim:
        return r.claim(
            claim, f">= {factor:g}x", lambda: at_least(r.iqm(other, metric) / r.iqm("residual", metric), factor)
        )

    summed, projected, linear = "simple, summed springs", "simple, projected", "linear identification"
    claims = [
        r.claim("In air its error after 64 ms", "<= 5e-4 rad^2", lambda: at_most(r.iqm("residual", far), 5e-4)),
        below("In air, 64 ms, it is below the simple model (summed springs)", summed, far, 10),
        below("In air, 64 ms, it is below the simple model (springs projected from the full one)", projected, far, 10),
        below("In air, 64 ms, it is below linear identification", linear, far, 3),
        below("In air, 64 ms, it is below linear identification on windows", f"{linear}, windows", far, 3),
    ]
    for name in GROUND[:2]:
        metric = f"ground, {name}, 16 ms [rad^2]"
        claims += [
            below(f"On the ground, {name}, 16 ms, it is below the simple model (summed springs)", summed, metric, 20),
            below(f"On the ground, {name}, 16 ms, it is below the simple model (projected)", projected, metric, 20),
            below(f"On the ground, {name}, 16 ms, it is below linear identification", linear, metric, 3),
        ]
    for name in GROUND[2:]:
        for horizon in (16, 64):
            metric = f"ground, {name}, {horizon} ms [rad^2]"
            claims.append(
                r.claim(
                    f"Off its data ({name} on the ground, {horizon} ms) it is hardly worse than its linear map",
                    "at most 10 % worse",
                    lambda m=metric: at_most(r.iqm("residual", m) / r.iqm(f"{linear}, windows", m), 1.1),
                )
            )
    return claims


def growth(results: Results, folder: Path) -> Figure:
    """Errors against the horizon, as figure 4 of the paper."""
    time = INTERVAL * np.array(HORIZONS, float)
    curves = {
        name: np.log10([results.values(name, f"air, {t:g} ms [rad^2]") for t in time])
        for name in ARMS
        if name in results.arms
    }
    path = plots.lines(folder / "errors.png", time, curves, "time foretold [ms]", "log10 of squared error [rad^2]")
    return Figure("Errors of hip angles in air", path, "Unseen noise, predictions fed back; one line an arm.")


STUDY = Study(
    name="residual",
    title="A fast simulator of a microrobot, corrected by seconds of data",
    claim="A simple model of the microrobot HAMR is fast and wrong. Twelve seconds of the slow model, hung in the "
    "air, teach what voltages to give the simple one so that it follows, on the ground as well, which no data showed.",
    source=PAPER,
    published=(
        Published("speed of the full model in MATLAB, slower than real time", 98.96, "x", PAPER),
        Published("simple and residual together, faster than the full model", 47, "x", PAPER),
        Published("data", 12, "s", PAPER),
    ),
    arms=ARMS,
    profiles={
        "quick": ResidualBudget(seeds=1, minutes=6, seconds=12),
        "paper": ResidualBudget(seeds=5, minutes=30, seconds=12),
    },
    verdict=verdict,
    figures=(growth,),
    shares={"simple, summed springs": 4.0, "residual": 4.0, "end-to-end network": 4.0},
)
