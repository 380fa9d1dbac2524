"""A wrong but fast simulator of HAMR, corrected by 12 s of the slow one."""

from pathlib import Path

import numpy as np

from offroad.report import plots
from offroad.studies.residual import control, speed, tables
from offroad.studies.residual.tables import GROUND, HORIZONS, INTERVAL, SHARES, ResidualBudget
from offroad.studies.study import Claim, Figure, NotRun, Published, Results, Study, at_least, at_most

PAPER = "Gruenstein, Chen, Doshi, Agrawal, ICRA 2021, arXiv 2104.00631"
SIMPLE = {
    "published constants": "simple, published",
    "summed springs": "simple, summed springs",
    "springs projected from the full model": "simple, projected",
}
LINEAR = "linear identification"


def verdict(r: Results) -> list[Claim]:
    return [*in_air(r), *on_ground(r), *off_data(r), *over_gaits(r), *in_control(r)]


def below(r: Results, claim: str, other: str, metric: str, factor: float | int) -> Claim:
    """The residual model's error is so many times smaller."""
    return r.claim(claim, f">= {factor:g}x", lambda: at_least(r.iqm(other, metric) / r.iqm("residual", metric), factor))


def in_air(r: Results) -> list[Claim]:
    far = "air, 64 ms [rad^2]"
    return [
        r.claim("In air its error after 64 ms", "<= 5e-4 rad^2", lambda: at_most(r.iqm("residual", far), 5e-4)),
        *(below(r, f"In air, 64 ms, below the simple model, {what}", arm, far, 10) for what, arm in SIMPLE.items()),
        below(r, "In air, 64 ms, below linear identification", LINEAR, far, 3),
        below(r, "In air, 64 ms, below linear identification on windows", f"{LINEAR}, windows", far, 3),
        below(r, "In air, 64 ms, below physical identification", "physical identification", far, 1),
    ]


def on_ground(r: Results) -> list[Claim]:
    claims = []
    for name in GROUND[:2]:
        metric, where = f"ground, {name}, 16 ms [rad^2]", f"On the ground, {name}, 16 ms"
        claims += [below(r, f"{where}, below the simple model, {what}", a, metric, 20) for what, a in SIMPLE.items()]
        claims += [
            below(r, f"{where}, below linear identification", LINEAR, metric, 3),
            below(r, f"{where}, below a network trained on the ground", "network, contact", metric, 10),
        ]
    return claims


def off_data(r: Results) -> list[Claim]:
    def worse(metric: str) -> Claim:
        return r.claim(
            f"Off its data ({metric.removesuffix(' [rad^2]')}) hardly worse than its linear map",
            "<= 1.1x",
            lambda: at_most(r.iqm("residual", metric) / r.iqm(f"{LINEAR}, windows", metric), 1.1),
        )

    return [worse(f"ground, {name}, {ms} ms [rad^2]") for name in GROUND[2:] for ms in (16, 64)]


def over_gaits(r: Results) -> list[Claim]:
    metric = "gaits: rank correlation of distance"
    return [
        r.claim("It ranks random gaits by distance as the full model does", ">= 0.9",
                lambda: at_least(r.iqm("residual", metric), 0.9)),
        r.claim("It ranks them at least as well as linear identification on windows", ">= 0",
                lambda: at_least(r.iqm("residual", metric) - r.iqm(f"{LINEAR}, windows", metric), 0.0)),
        r.claim("It is cheaper than a full model of the same error", ">= 1x",
                lambda: at_least(speed.at_matched_error(r), 1.0)),
        r.claim("A fit takes", "<= 180 s", lambda: at_most(max(r.values("residual", "fit [s]")), 180)),
    ]  # fmt: skip


def in_control(r: Results) -> list[Claim]:
    """Returns of walking forward; a policy that falls to nothing counts as nothing, not less."""

    def returned(arm: str) -> float:
        return max(float(np.mean(r.values(f"control_{arm}", "return in the full model"))), 0.0)

    def against(arm: str, factor: float | int) -> tuple[str, bool]:
        ours, theirs = returned("residual"), returned(arm)
        return f"{ours:.2f} against {theirs:.2f}", ours > 0 and ours >= factor * theirs

    def kept(arm: str) -> tuple[float, bool]:
        own, full = (float(np.mean(r.values(arm, f"return in {where} model"))) for where in ("its own", "the full"))
        return at_least(max(full, 0.0) / max(own, 1e-9), 0.5)

    others = {
        "simple": "the simple model",
        "noise": "noise",
        "randomisation": "domain randomisation",
        "network": "a network of the whole robot",
    }
    better = {"projected": "projected springs", "oracle": "oracle randomisation", "linear": "linear identification"}
    return [
        r.claim("Control: what it keeps of its return in the full model", ">= 0.5", lambda: kept("control_residual")),
        *(
            r.claim(f"Control: return in the full model, against training in {what}", f">= {factor:g}x",
                    lambda arm=arm, f=factor: against(arm, f))
            for group, factor in ((others, 2.0), (better, 1.0))
            for arm, what in group.items()
        ),
        r.claim("Control: speed in the full model", ">= 3 body lengths/s",
                lambda: at_least(float(np.mean(r.values("control_residual", control.SPEED))), 3.0)),
        r.claim("Control: share of what PPO in the full model itself gains", ">= 0.5",
                lambda: against("full", 0.5)),
        r.claim("Control: what it keeps of its return in turning", ">= 0.5", lambda: kept("turn_residual")),
    ]  # fmt: skip


# --- figures ---------------------------------------------------------------------------------------------------------


def growth(results: Results, folder: Path) -> Figure:
    """Errors against the horizon, as figure 4 of the paper."""
    time = INTERVAL * np.array(HORIZONS, float)
    curves = {}
    for name, found in results.arms.items():
        if f"air, {time[0]:g} ms [rad^2]" in found["metrics"]:
            errors = [results.iqm(name, f"air, {t:g} ms [rad^2]") for t in time]
            curves[name] = np.log10(errors)[:, None]
    path = plots.lines(folder / "errors.png", time, curves, "time foretold [ms]", "log10 of squared error [rad^2]")
    return Figure("Errors of hip angles in air", path, "Unseen noise, predictions fed back; interquartile means.")


def data(results: Results, folder: Path) -> Figure:
    """Errors against the amount of data."""
    amounts = [share * results.config["seconds"] for share in SHARES]
    curves = {
        name: np.log10([results.iqm("amounts", f"{name}, {s:g} s: air, 64 ms [rad^2]") for s in amounts])[:, None]
        for name in ("linear, windows", "residual", "network")
    }
    path = plots.lines(
        folder / "amounts.png", np.array(amounts, float), curves, "log in the air [s]", "log10 of squared error [rad^2]"
    )  # fmt: skip
    return Figure("Errors against the amount of data", path, "In air, after 64 ms; one fit for each point.")


def learning(results: Results, folder: Path) -> Figure:
    """Returns in training, each arm in its own model."""
    curves = {}
    for name in control.ARMS:
        if name in results.arms:
            kept = results.artefact(name, f"curve_{results.arms[name]['seeds'][0]}")
            curves[name.removeprefix("control_")] = (kept["step"], kept["gained"][:, None])
    if not curves:
        raise NotRun("no policy was trained")
    path = plots.learning_curves(folder / "learning.png", curves, "return in its own model")
    return Figure("Learning to walk", path, "Each arm in its own model, with exploration; first seed.")


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
    arms=tables.ARMS | speed.ARMS | control.ARMS,
    profiles={
        "quick": ResidualBudget(
            seeds=1, minutes=5, seconds=12, contact=0, gaits=0, updates=500, tuning=100, decisions=0,
            worlds=0, rollouts=0,
        ),
        "cpu": ResidualBudget(
            seeds=3, minutes=200, seconds=12, contact=12, gaits=40, updates=2000, tuning=300,
            decisions=480_000, worlds=64, rollouts=5,
        ),
        "paper": ResidualBudget(
            seeds=5, minutes=3000, seconds=12, contact=120, gaits=200, updates=5000,
            tuning=600, decisions=4_800_000, worlds=64, rollouts=5,
        ),
    },
    verdict=verdict,
    figures=(growth, data, learning),
    # Minutes of one core for a seed of the profile "cpu", rounded up; environments measured with 64 worlds.
    shares={"simple, published": 0.5, "simple, summed springs": 0.5, "simple, projected": 0.5, "full, 0.25 ms": 0.5,
            "linear identification": 1.5, "linear identification, windows": 0.5, "network, contact": 2,
            "amounts": 8}
    | dict.fromkeys(speed.ARMS, 0.2)
    | {name: 0.01 for name in control.ARMS if name.startswith("turn_")}  # which that profile leaves out
    | {"control_simple": 2, "control_noise": 2, "control_randomisation": 2.5, "control_projected": 2,
       "control_oracle": 2.5, "control_linear": 3, "control_residual": 6, "control_network": 3, "control_full": 31},
)  # fmt: skip
