"""`report.html`: one file with everything in it (pictures and videos as data URIs, no scripts, no links)."""

import base64
import json
import mimetypes
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from offroad.errors import OffroadError
from offroad.report import plots, tables


def study(folder: Path) -> Path:
    """Writes `report.html` from a study's results folder (`results.json`, `study.json`) and returns its path."""
    results, about = _read(folder / "results.json"), _read(folder / "study.json")
    states = {True: ("holds", "✓", "Holds"), False: ("fails", "✗", "Fails"), None: ("open", "?", "Not evaluated")}
    claims = [
        c | dict(zip(("state", "mark", "word"), states[c["holds"]])) | {"measured": tables.number(c["measured"])}
        for c in results["claims"]
    ]
    evaluated = [c for c in results["claims"] if c["holds"] is not None]
    waiting = len(claims) - len(evaluated)
    summary = f"{sum(c['holds'] for c in evaluated)} of {len(evaluated)} claims hold"
    seeds = sorted({s for arm in results["arms"].values() for s in arm["seeds"]})
    return _write(
        folder / "report.html",
        "study",
        title=about["title"],
        about=about,
        summary=summary + (f", {waiting} not evaluated" if waiting else ""),
        claims=claims,
        table=Markup(tables.to_html(results)),
        arms={a: text for a, text in about["arms"].items() if text and a in results["arms"]},
        published=[p | {"value": tables.number(p["value"])} for p in results["published"]],
        figures=[f | {"uri": data_uri(folder / f["path"])} for f in about["figures"]],
        provenance={
            "study": f"{results['study']}, profile {results['profile']}",
            **{k: tables.number(v) for k, v in _flat(results["config"]).items() if k != "seeds"},
            "seeds": ", ".join(map(str, seeds)) or "none",
            "wall time": tables.duration(results["wall_s"]),
            "machine": results["machine"],
            "commit": results["commit"],
        },
    )


def runs(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run folder, or of several side by side, and returns its path.

    Curves come from `metrics.jsonl` (one line per report, a number or one number per seed for each metric), settings
    from `config.json`. `out` is `report.html` in the run folder, or in the folder that holds all runs.
    """
    if not folders:
        raise OffroadError("no run folders to report on; expected at least one")
    folders = [Path(f) for f in folders]
    base = Path(os.path.commonpath([f.resolve() for f in folders]))
    labels = [f.resolve().name if len(folders) == 1 else str(f.resolve().relative_to(base)) for f in folders]
    if len(set(labels)) < len(labels):
        raise OffroadError(f"a run folder is named twice: {', '.join(map(str, folders))}; name each once")
    configs = {label: _flat(_read(f / "config.json")) for label, f in zip(labels, folders)}
    metrics = {label: _metrics(f / "metrics.jsonl") for label, f in zip(labels, folders)}
    names = sorted({name for m in metrics.values() for name in m}, key=lambda n: (not n.startswith("eval/"), n))
    scores = [n for n in names if n.startswith(("eval/", "episode"))]
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {n: _curve_picture(Path(scratch) / "curve.png", n, metrics, n in scores) for n in names}
    differing = [k for k in dict.fromkeys(k for c in configs.values() for k in c) if _differs(k, configs.values())]
    videos = [v for f in folders for v in sorted((f / "videos").glob("*")) if v.suffix in (".mp4", ".gif", ".png")]
    return _write(
        out or base / "report.html",
        "runs",
        title=labels[0] if len(labels) == 1 else f"{len(labels)} runs",
        note=tables.NOTE,
        scores={
            "header": ["run", *scores],
            "rows": [[label, *(_last(m.get(n)) for n in scores)] for label, m in metrics.items()] if scores else [],
        },
        differences={
            "header": labels,
            "rows": [[k, *(tables.number(c[k]) if k in c else "" for c in configs.values())] for k in differing],
        },
        curves=[pictures[n] for n in scores],
        others=[pictures[n] for n in names if n not in scores],
        videos=[{"title": v.stem, "uri": data_uri(v), "caption": "", "alt": v.stem} for v in videos],
        configs={label: {k: tables.number(v) for k, v in c.items()} for label, c in configs.items()},
    )


def data_uri(path: Path) -> str:
    """A picture or video as a `data:` URI."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith(("image/", "video/")):
        raise OffroadError(f"{path} is not a picture or video that a browser shows; expected png, gif or mp4")
    if not path.is_file():
        raise OffroadError(f"{path} does not exist; run the study or training that writes it again")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise OffroadError(
            f"{path} does not exist; expected a folder that a study or a training run has written"
        ) from None
    except ValueError as error:
        raise OffroadError(f"{path} is not JSON ({error}); restore it or run the study again") from None


def _metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{metric: (steps [T], values [T, seeds])}. Of a step that was logged twice (a resumed run) the later counts."""
    if not path.is_file():
        raise OffroadError(f"{path} does not exist; expected the run folder of a training run")
    lines, found = path.read_text().splitlines(), {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the run was killed while writing it
                continue
            raise OffroadError(f"line {number} of {path} is not JSON ({error}); remove that line") from None
        for name, value in record.items():
            if name not in ("step", "time") and not isinstance(value, str):
                found.setdefault(name, {})[record["step"]] = np.atleast_1d(np.asarray(value, float))
    return {n: (np.array(sorted(by)), np.stack([by[step] for step in sorted(by)])) for n, by in found.items()}


def _curve_picture(path: Path, name: str, metrics: Mapping[str, dict[str, Any]], large: bool) -> dict[str, str]:
    curves = {label: m[name] for label, m in metrics.items() if name in m}
    plots.learning_curves(path, curves, name, size=(7.2, 3.6) if large else (4.4, 2.8))
    return {"title": "", "uri": data_uri(path), "caption": "", "alt": f"{name} against environment steps"}


def _last(curve: tuple[np.ndarray, np.ndarray] | None) -> str:
    return "" if curve is None else f"{tables.score(curve[1][-1].tolist())} at {tables.number(int(curve[0][-1]))} steps"


def _differs(key: str, configs: Iterable[dict[str, Any]]) -> bool:
    return len({json.dumps(c.get(key, "-"), sort_keys=True) for c in configs}) > 1


def _write(path: Path, template: str, **values: Any) -> Path:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = environment.get_template(f"{template}.html.jinja").render(**values)
    partial = path.with_suffix(".html.partial")
    partial.write_text(text)
    os.replace(partial, path)
    return path


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
