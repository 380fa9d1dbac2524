"""Results as a table: every score is an interquartile mean with its interval, and says its seeds and its budget."""

from html import escape
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from offroad.report.statistics import estimate

NOTE = "IQM [95 % bootstrap interval over seeds]"


def cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a results file: one row per arm, one column per metric, and the number of seeds."""
    metrics = list(dict.fromkeys(m for arm in results["arms"].values() for m in arm["metrics"]))
    rows = []
    for name, arm in results["arms"].items():
        scores = [score(arm["metrics"][m]) if m in arm["metrics"] else "" for m in metrics]
        rows.append([name, *scores, str(len(arm["seeds"]))])
    return ["arm", *metrics, "seeds"], rows


def score(values: list[float | None]) -> str:
    """One score in words; a null is a seed whose value was not finite."""
    bad = sum(v is None or not np.isfinite(v) for v in values)
    if bad:
        return f"not finite in {bad} of {len(values)}"
    return str(estimate([float(v) for v in values if v is not None]))


def caption(results: dict[str, Any]) -> str:
    """What the numbers are and what they cost."""
    budget = ", ".join(f"{k} {number(v)}" for k, v in results["config"].items())
    return f"{NOTE}; profile {results['profile']}: {budget}"


def terminal(results: dict[str, Any]) -> Table:
    """The claims, which fit a terminal; the scores of all arms are in the report."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "claim", "measured", "required"):
        table.add_column(name)
    for claim in results["claims"]:
        mark = {True: "holds", False: "fails", None: "open"}[claim["holds"]]
        # Text, because rich would read the unit in "speed [m/s]" as markup.
        table.add_row(mark, *(Text(number(claim[part])) for part in ("claim", "measured", "required")))
    return table


def markdown(results: dict[str, Any]) -> str:
    header, rows = cells(results)
    align = "| --- |" + " ---: |" * (len(header) - 1)
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [header, *rows]]
    return "\n".join([lines[0], align, *lines[1:], "", caption(results), ""])


def to_html(results: dict[str, Any]) -> str:
    header, rows = cells(results)
    head = "".join(f"<th>{escape(c)}</th>" for c in header)
    body = "".join(
        "<tr>" + f"<th>{escape(r[0])}</th>" + "".join(f"<td>{escape(c)}</td>" for c in r[1:]) + "</tr>" for r in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{escape(caption(results))}</p>'
    )


def number(value: Any) -> str:
    """A number as a person writes it: 25,000,000 and 3.142, not 25000000.0; anything else as it is."""
    match value:
        case bool() | None:
            return {True: "yes", False: "no", None: "not finite"}[value]
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            if not np.isfinite(value):
                return "not finite"
            whole = value == int(value) and abs(value) < 1e15
            return number(int(value)) if whole else f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(number, value))
    return str(value)


def duration(seconds: float) -> str:
    """`48 s`, `3.4 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
