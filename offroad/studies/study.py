"""The protocol of a study: a published claim, the arms that test it, and a verdict computed from their results.

A study file reads, in order: the claim in two sentences with its source; the published numbers; the arms; the budgets;
the verdict. It contains no algorithm.

    def human(seeds, budget, context):
        "Human drivers only."                                   # the arm's description in the report
        ...
        context.keep("trajectory", x=x, v=v)                    # for the figures
        return {"speed [m/s]": [one value per seed]}

    def verdict(r):
        return [r.claim("Human drivers jam", "below 2.6 m/s", lambda: at_most(r.iqm("human", "speed [m/s]"), 2.6))]
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from offroad.errors import OffroadError, unknown
from offroad.report import html, tables
from offroad.report.statistics import iqm
from offroad.studies import _provenance as provenance
from offroad.studies._context import Context
from offroad.studies._progress import Progress

Metrics = dict[str, list[float]]


@dataclass(frozen=True)
class Published:
    """A number that somebody printed, and where."""

    what: str
    value: float | int | str
    unit: str
    source: str


@dataclass(frozen=True)
class Claim:
    """One sentence of the verdict. `holds` is None where an arm that it needs was not run."""

    claim: str
    measured: str | float | int
    required: str
    holds: bool | None


@dataclass(frozen=True)
class Figure:
    """A picture or a video (png, gif, mp4) that a study drew into the folder that it was given."""

    title: str
    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a profile may spend. A study subclasses it with its own numbers (steps, environments, ...)."""

    seeds: int
    minutes: float | int  # on two cores; the first estimate of the time left


class NotRun(Exception):
    """The results of an arm were asked for, but it was not run. Raised inside claims and figures, which then wait.

    An arm raises it to be left out of a profile."""


@dataclass
class Results:
    """What has been measured so far; `results.json` is exactly this, without `folder`."""

    study: str
    profile: str
    folder: Path
    published: Sequence[Published] = ()
    config: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # {arm: {"seeds", "metrics", "commit", ...}}
    claims: list[Claim] = field(default_factory=list)
    commit: str = ""
    machine: str = ""
    wall_s: float = 0.0

    def __getitem__(self, arm: str) -> Metrics:
        """The metrics of an arm."""
        if arm not in self.arms:
            raise NotRun(f"the arm {arm!r} was not run")
        return self.arms[arm]["metrics"]

    def values(self, arm: str, metric: str) -> list[float]:
        """One value per seed."""
        metrics = self[arm]
        if metric not in metrics:
            raise unknown(f"metric of the arm {arm!r}", metric, metrics)
        return metrics[metric]

    def iqm(self, arm: str, metric: str) -> float:
        """The interquartile mean over seeds."""
        return iqm(self.values(arm, metric))

    def curve(self, arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a curve that the arm left under that name."""
        found = self.arms.get(arm, {}).get("curves", {})
        if name not in found:
            raise NotRun(f"the arm {arm!r} left no curve {name!r}")
        return np.array(found[name]["step"], float), np.array(found[name]["value"], float)

    def artefact(self, arm: str, name: str) -> dict[str, np.ndarray]:
        """The arrays that the arm kept under that name."""
        path = self.folder / "artefacts" / arm / f"{name}.npz"
        if arm not in self.arms or not path.exists():
            raise NotRun(f"the arm {arm!r} left no {name!r}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def claim(self, claim: str, required: str, measure: Callable[[], tuple[Any, bool]]) -> Claim:
        """Evaluates one claim: `measure` returns what was measured and whether it is enough."""
        try:
            measured, holds = measure()
        except NotRun as missing:
            return Claim(claim, f"not evaluated: {missing}", required, None)
        return Claim(claim, measured if isinstance(measured, str) else float(measured), required, bool(holds))

    def save(self) -> Path:
        """Writes `results.json` in one atomic step. Strict JSON: what is not a finite number becomes null."""
        value = {f: v for f, v in vars(self).items() if f not in ("folder", "claims", "published")}
        value["claims"] = [asdict(c) for c in self.claims]
        value["published"] = [asdict(p) for p in self.published]
        return _write_json(self.folder / "results.json", value)


Arm = Callable[[list[int], Any, "Context"], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim and everything needed to test it.

    Each arm is `(seeds, budget, context) -> {metric: [one value per seed]}`; the first line of its docstring describes
    it in the report. Each figure is `(results, folder) -> Figure`, drawn from results and kept arrays only, and left
    out where an arm that it needs was not run.
    """

    name: str
    title: str
    claim: str  # two sentences
    source: str
    published: tuple[Published, ...]
    arms: Mapping[str, Arm]
    profiles: Mapping[str, Budget]
    verdict: Callable[[Results], list[Claim]]
    figures: tuple[Callable[[Results, Path], Figure], ...] = ()
    shares: Mapping[str, float | int] = field(default_factory=dict)  # relative cost of an arm, 1 where not named


def at_least(value: float, bound: float | int) -> tuple[float, bool]:
    """For `Results.claim`: NaN never holds."""
    return value, value >= bound


def at_most(value: float, bound: float | int) -> tuple[float, bool]:
    """For `Results.claim`: NaN never holds."""
    return value, value <= bound


def reproduce(
    study: Study,
    profile: str = "quick",
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
) -> Results:
    """Runs the arms in their order and writes `results.json`, `report.html` and the figures into `out`.

    `results.json` is saved after every arm, so that a crash in one loses nothing of the others. With `arms`, results
    of other arms that `out` holds are kept: a long study may be run arm by arm, and by several processes at once.

    Raises:
        OffroadError: unknown profile or arm, no seeds, results of another budget in `out`, or an arm that failed or
            returned the wrong thing.
    """
    if profile not in study.profiles:
        raise unknown(f"profile of the study {study.name!r}", profile, study.profiles)
    for arm in arms or ():
        if arm not in study.arms:
            raise unknown(f"arm of the study {study.name!r}", arm, study.arms)
    budget = study.profiles[profile]
    seed_list = list(range(budget.seeds if seeds is None else seeds))
    if not seed_list:
        raise OffroadError(f"seeds is {seeds}; expected at least 1")
    chosen = [a for a in study.arms if arms is None or a in arms]
    folder = Path(out) if out is not None else Path("results") / study.name / profile
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OffroadError(f"the folder '{folder}' cannot be made ({error.strerror}); choose another") from error

    console = console or Console()
    config = asdict(budget) | {"seeds": len(seed_list)}
    commit, machine = provenance.commit(), provenance.machine()
    results = Results(study.name, profile, folder, study.published, config, commit=commit, machine=machine)
    others, done = [a for a in study.arms if a not in chosen], {}

    def gather() -> None:  # other processes may have finished arms in the same folder since
        found = (_earlier(results, others) if others else {}) | done
        results.arms = {a: found[a] for a in study.arms if a in found}
        results.wall_s = round(sum((r.get("wall_s", 0.0) for r in results.arms.values()), 0.0), 3)

    gather()
    shared: dict[str, Any] = {}
    costs = {a: study.shares.get(a, 1.0) for a in study.arms}
    seconds = budget.minutes * 60 * len(seed_list) / budget.seeds * sum(costs[a] for a in chosen) / sum(costs.values())
    progress = Progress({a: costs[a] for a in chosen}, seconds, console)
    for arm in chosen:
        progress.begin(arm)
        start = time.monotonic()
        try:
            context = Context(folder, arm, seed_list, shared, progress.say)
            metrics = study.arms[arm](seed_list, budget, context)
            checked = _checked(arm, metrics, len(context.seeds))
        except NotRun as reason:
            progress.end(f"left out: {reason}")
            continue
        except Exception as error:
            with suppress(Exception):  # a verdict that trips over what is missing must not hide this error
                gather()
                _finish(study, results)
            reason = str(error) if isinstance(error, OffroadError) else f"{type(error).__name__}: {error}"
            kept = f"; {folder} keeps the results of {', '.join(results.arms)}" if results.arms else ""
            raise OffroadError(f"the arm {arm!r} of the study {study.name!r} failed: {reason}{kept}") from error
        took = round(time.monotonic() - start, 3)
        curves = {"curves": context.curves} if context.curves else {}
        done[arm] = {"seeds": context.seeds, "metrics": checked, **curves, "commit": results.commit, "wall_s": took}
        gather()
        results.save()
        progress.end()
    gather()
    _finish(study, results, console)
    return results


def _earlier(results: Results, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results of these arms that the folder holds already, which must have had the same budget."""
    path = results.folder / "results.json"
    if not path.exists():
        return {}
    saved = json.loads(path.read_text())
    mine = json.loads(json.dumps(_strict({"profile": results.profile, **results.config})))
    theirs = {"profile": saved["profile"], **saved["config"]}
    if different := [k for k in mine if k != "seeds" and mine[k] != theirs.get(k)]:
        raise OffroadError(
            f"{results.folder} holds results with {different[0]} = {theirs.get(different[0])}, this run has "
            f"{mine[different[0]]}; choose another --out"
        )
    return {arm: saved["arms"][arm] for arm in arms if arm in saved["arms"]}


def _checked(arm: str, metrics: Mapping[str, Any], seeds: int) -> Metrics:
    """The arm's metrics as plain numbers; raises `OffroadError` where a metric has not one number per seed."""
    checked = {}
    for name, values in metrics.items():
        array = np.asarray(values, float)
        if array.shape != (seeds,):
            raise OffroadError(
                f"its metric {name!r} has shape {array.shape}; expected one number for each of {seeds} seeds"
            )
        checked[name] = array.tolist()
    return checked


def _finish(study: Study, results: Results, console: Console | None = None) -> None:
    """Verdict, figures, report; prints the table, three lines of verdict and the path of the report last."""
    try:
        results.claims = list(study.verdict(results))
    except NotRun as missing:  # asked outside `Results.claim`
        results.claims = [Claim("The verdict", f"not evaluated: {missing}", "every arm", None)]
    results.save()
    about = {
        "title": study.title,
        "claim": study.claim,
        "source": study.source,
        "arms": {arm: (run.__doc__ or "").strip().split("\n")[0] for arm, run in study.arms.items()},
        "figures": [
            {"title": f.title, "path": os.path.relpath(f.path, results.folder), "caption": f.caption}
            for f in _figures(study, results, console)
        ],
    }
    _write_json(results.folder / "study.json", about)
    report = html.study(results.folder)
    if console is None:
        return
    saved = json.loads((results.folder / "results.json").read_text())
    console.print(tables.terminal(saved))
    for line in _verdict_lines(study, results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)


def _figures(study: Study, results: Results, console: Console | None) -> Iterator[Figure]:
    folder = results.folder / "figures"
    folder.mkdir(exist_ok=True)
    for draw in study.figures:
        try:
            yield draw(results, folder)
        except NotRun:
            continue
        except Exception as error:  # a picture must not cost the results of an hour
            if console is not None:
                console.print(f"figure {draw.__name__} failed: {type(error).__name__}: {error}", markup=False)


def _verdict_lines(study: Study, results: Results) -> list[str]:
    """How many claims hold; the claim that matters most (the first that fails, or else the first); at what cost."""
    claims = results.claims
    evaluated = [c for c in claims if c.holds is not None]
    held = sum(bool(c.holds) for c in evaluated)
    waiting = f", {len(claims) - len(evaluated)} not evaluated" if len(evaluated) < len(claims) else ""
    lines = [f"{study.title}: {held} of {len(evaluated)} claims hold{waiting}"]
    for c in sorted(claims, key=lambda c: {False: 0, True: 1, None: 2}[c.holds])[:1]:
        mark = {False: "fails", True: "holds", None: "open"}[c.holds]
        lines.append(f"{mark}: {c.claim}: {tables.number(c.measured)} (required: {c.required})")
    lines.append(f"{results.config['seeds']} seeds, profile {results.profile}, {tables.duration(results.wall_s)}")
    return lines


def _write_json(path: Path, value: Any) -> Path:
    """Atomic: a reader, or a kill at any moment, sees the old file or the new one."""
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(_strict(value), indent=1, allow_nan=False, default=str) + "\n")
    os.replace(partial, path)
    return path


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    match value:
        case dict():
            return {str(k): _strict(v) for k, v in value.items()}
        case list() | tuple():
            return [_strict(v) for v in value]
        case np.ndarray() | np.generic():
            return _strict(value.tolist())
        case float() if not np.isfinite(value):
            return None
    return value
