"""Puts committed figures into the site, so that a page links to `results/...` as if the folder lay inside `docs/`."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = {".png", ".svg", ".gif", ".mp4", ".json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for folder in ("results", "benchmarks/results"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SHOWN:
                files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files
