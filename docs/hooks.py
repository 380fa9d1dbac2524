"""Puts what is committed under `results/` into the site, so that no page repeats a number by hand.

`{{ show results/traffic/cpu/results.json }}` in a page becomes a table of the claims, `{{ table ... }}` one of every
arm's measurements (`{{ table ... cost, }}` of the arms that begin so); a figure becomes a picture, Markdown becomes
part of the page. What does not exist is left out. The files themselves are copied into the site.
"""

import json
import re
from pathlib import Path
from posixpath import relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SHOWN = {".png", ".svg", ".gif", ".mp4", ".json"}
MACRO = re.compile(r"\{\{ (show|table) (\S+)(?: (.+?))? \}\}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for folder in ("results", "benchmarks/results"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SHOWN:
                files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    root = Path(config.config_file_path).parent

    def show(match: re.Match[str]) -> str:
        kind, name, caption = match.groups()
        path = root / name
        if not path.exists():
            return ""
        if path.suffix == ".json":
            results = json.loads(path.read_text())
            return _claims(results) if kind == "show" else _measurements(results, caption or "")
        if path.suffix == ".md":
            return path.read_text()
        return f"![{caption}]({relpath(name, Path(page.file.src_uri).parent.as_posix())})\n\n*{caption}*"

    return MACRO.sub(show, markdown)


def _claims(results: dict[str, Any]) -> str:
    counts = sorted({len(arm["seeds"]) for arm in results["arms"].values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    lines = ["| claim | required | measured | holds |", "| --- | --- | --- | --- |"]
    for claim in results["claims"]:
        measured = claim["measured"] if isinstance(claim["measured"], str) else f"{claim['measured']:.3g}"
        holds = {True: "yes", False: "**no**", None: "not evaluated"}[claim["holds"]]
        lines.append(f"| {claim['claim']} | {claim['required']} | {measured} | {holds} |")
    about = f"profile `{results['profile']}`, {seeds} of an arm, {results['machine']}"
    return "\n".join(lines) + f"\n\nMeasured with {about}, commit `{results['commit'][:7]}`."


def _measurements(results: dict[str, Any], begin: str) -> str:
    """The mean over the seeds, and every seed's value where there are several."""
    arms = {arm: found for arm, found in results["arms"].items() if arm.startswith(begin)}
    if not arms:
        return ""
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["metrics"]))

    def cell(values: list[float]) -> str:
        shown = [f"{value:.4g}" for value in values]
        mean = f"{sum(values) / len(values):.4g}" if values else ""
        return f"{mean} ({', '.join(shown)})" if len(values) > 1 else mean

    lines = [f"| arm | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for arm, found in arms.items():
        lines.append(f"| {arm} | {' | '.join(cell(found['metrics'].get(name, [])) for name in names)} |")
    return "\n".join(lines)
