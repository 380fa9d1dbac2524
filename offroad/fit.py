"""`offroad fit residual`: a simple simulator and a log in; a corrected simulator and an honest comparison out."""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from offroad.errors import OffroadError
from offroad.models import FitConfig, Limb, MujocoSimulator, Simulator, load, read_log, simulator
from offroad.models.comparison import Comparison, compare
from offroad.models.logs import Log
from offroad.report import plots
from offroad.studies.study import (
    Budget,
    Claim,
    Context,
    Figure,
    Metrics,
    NotRun,
    Results,
    Study,
    at_least,
    at_most,
    reproduce,
)


def _hamr() -> tuple[Simulator, tuple[Limb, ...]]:
    from offroad.studies.residual.robots import hamr_limbs, hamr_simulator

    return hamr_simulator(), hamr_limbs()


PREPARED: dict[str, Callable[[], tuple[Simulator, tuple[Limb, ...]]]] = {"offroad/HamrSimple-v0": _hamr}
"""Environments whose simulator needs more than its MuJoCo model: what a log's inputs do, and which limbs are alike."""


CLOSED = "closed loop"
ARMS = {
    "simple": "The simulator as it is.",
    "physical identification": "Masses, dampers, springs, friction, gains; as many windows, as much time.",
    "linear identification": "A linear map from state and input to the simulator's controls, by least squares.",
    "linear identification, windows": "The same map, tuned on many steps in a row.",
    "residual, single steps": "Bounded networks on top of the linear map, fitted to single steps.",
    "residual": "The same, tuned on many steps in a row: the model that was saved.",
    "end-to-end network": "A network without any simulator, with the same data and budget.",
}


def fit_residual(
    simple: str,
    log: Path,
    out: Path,
    *,
    joints: tuple[str, ...] = (),
    columns: Mapping[str, Any] | None = None,
    form: str = "auto",
    dt: float | int | None = None,
    delay: int | None = None,
    gaps: str = "error",
    ignore: Collection[str] = (),
    seed: int = 0,
    config: FitConfig | None = None,
) -> Results:
    """Fits everything to the log and writes `out`: `model.npz`, `model.json`, `results.json`, `report.html`, figures.

    `simple` is an environment id (`offroad/` may be left out) whose MuJoCo model is the simulator, or an XML file.
    `columns` are the names of the log's columns, as of `offroad.models.read_log`: `q`, `u`, `qd`, `time`, `episode`.
    `dt` and `gaps` are those of `offroad.models.read_log`, `delay`, `form` and `ignore` of `offroad.models.fit`.

    Raises `OffroadError` for a log that cannot be used, with what is wrong.
    """
    read = read_log(log, dt=dt, gaps=gaps, **(columns or {}))
    found, limbs = simple_simulator(simple, joints)

    def everything(context: Context) -> Comparison:
        comparison = compare(
            found, read, form=form, limbs=limbs, delay=delay, ignore=ignore, seed=seed, config=config,
            say=context.progress,
        )  # fmt: skip
        comparison.model.save(out)
        return comparison

    def arm(name: str) -> Any:
        def run(seeds: list[int], budget: Any, context: Context) -> Metrics:
            comparison = context.once("comparison", lambda: everything(context))
            context.seeds = seeds[:1]
            if name not in comparison.errors:
                raise NotRun("the simulator does not take the log's inputs")
            context.keep("errors", share=comparison.shares(name), dt=comparison.dt)
            return metrics(comparison, name)

        run.__doc__ = ARMS[name]
        return run

    study = Study(
        name="fit-residual",
        title=f"{simple}, corrected by {log.name}",
        claim="A correction of the simulator's inputs, learnt from a log, makes it do what the robot did. Errors are "
        "squared, on the last fifth of the log, which no alternative saw, as shares of the variance of the positions: "
        "after one step, after several, and in a closed loop, where predictions are fed back under the log's inputs as "
        "long as the log allows, up to 128 steps.",
        source=describe(read),
        published=(),
        arms={name: arm(name) for name in ARMS},
        profiles={"log": Budget(seeds=1, minutes=4)},
        verdict=lambda r: verdict(r, out),
        figures=(growth,),
        shares={"simple": 50.0},
    )
    try:
        return reproduce(study, "log", out=out)
    except OffroadError as error:  # what is wrong with the log is no matter of a study and its arms
        raise (error.__cause__ if isinstance(error.__cause__, OffroadError) else error) from None


def simple_simulator(simple: str, joints: tuple[str, ...] = ()) -> tuple[Simulator, tuple[Limb, ...] | None]:
    """The simulator of an environment id or of an XML file, and the limbs that are known to be alike."""
    if simple.endswith(".xml"):
        if not Path(simple).exists():
            raise OffroadError(
                f"the simulator '{simple}' does not exist; expected a MuJoCo XML file or an environment id"
            )
        try:
            return MujocoSimulator(mujoco.MjModel.from_xml_path(simple), joints or None), None
        except ValueError as error:
            raise OffroadError(f"MuJoCo cannot read '{simple}': {' '.join(str(error).split())}") from error
    import offroad

    name = f"offroad/{simple}" if f"offroad/{simple}" in gym.registry else simple
    if name in PREPARED:
        prepared, limbs = PREPARED[name]()
        if joints and joints != prepared.joints:
            raise OffroadError(
                f"'{name}' is corrected in all its joints, in this order: {', '.join(prepared.joints)}; leave joints "
                "out, and put the log's columns in that order"
            )
        return prepared, limbs
    return simulator(offroad.make_vec(name), joints or None), None  # an unknown name is told here


def describe(log: Log) -> str:
    """The log in a line."""
    about = (
        f"{len(log.q):,} rows, {log.dt:.4g} apart, {len(np.unique(log.episode))} episodes, {log.q.shape[1]} joints, "
        f"{log.u.shape[1]} inputs"
    )
    return "; ".join([f"Log: {about}", *log.notes])


def metrics(comparison: Comparison, name: str) -> Metrics:
    """Errors after one step, several, and in the closed loop to the longest horizon; and what the fit took."""
    shares = comparison.shares(name)
    chosen = {"one step": 1, **{f"{h} steps": h for h in (8, 32)}, f"{CLOSED}, {len(shares)} steps": len(shares)}
    errors = {label: [float(shares[h - 1])] for label, h in chosen.items() if h <= len(shares)}
    return errors | {"fit [s]": [comparison.seconds.get(name, 0.0)]}


def verdict(results: Results, folder: Path) -> list[Claim]:
    """What the user must know before training on the corrected simulator."""
    model = load(folder)
    free = next(name for name in results["residual"] if name.startswith(CLOSED))

    def ratio(other: str) -> float:
        return results.values(other, free)[0] / max(results.values("residual", free)[0], 1e-300)

    claims = [
        results.claim(
            "The correction foretells the held-out log",
            "error below 10 % of the variance in the closed loop",
            lambda: at_most(results.values("residual", free)[0], 0.1),
        )
    ]
    for other in ("linear identification", "linear identification, windows", "physical identification"):
        claims.append(
            results.claim(
                f"It beats {other} in the closed loop",
                "error at most as large",
                lambda other=other: at_least(ratio(other), 1.0),
            )
        )
    claims.append(
        Claim("Controls alone correct the simulator", model.form, "form action or delta", model.form != "dynamics")
    )
    return claims + [Claim(f"Note: {note}", "see left", "nothing to note", None) for note in model.notes]


def growth(results: Results, folder: Path) -> Figure:
    """Errors against the horizon."""
    curves, time = {}, np.zeros(0)
    for name in results.arms:
        kept = results.artefact(name, "errors")
        rows = 2 ** np.arange(int(np.log2(len(kept["share"]))) + 1)
        curves[name] = np.log10(np.maximum(kept["share"][rows - 1], 1e-12))[:, None]
        time = float(kept["dt"]) * rows
    path = plots.lines(
        folder / "errors.png", time, curves, "time since the last measurement", "log10 of squared error / variance"
    )
    return Figure(
        "Errors grow with the time foretold",
        path,
        "Squared error of positions on the held-out log, predictions fed back.",
    )
