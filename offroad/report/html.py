"""`report.html`: one file with everything in it (pictures and videos as data URIs, no scripts, no links)."""

import base64
import json
import mimetypes
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from offroad.errors import OffroadError
from offroad.report import tables


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
