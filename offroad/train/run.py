"""The run folder: everything that one training run leaves on the disk."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offroad.data import strict_json
from offroad.errors import OffroadError, unknown
from offroad.train import checkpoint
from offroad.train.checkpoint import Saved
from offroad.train.log import Log, read_metrics

FORMAT = 1


class Run:
    """A folder with `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and what else is put beside them.

    `Run.create` writes and holds a lock for as long as the process lives; `Run.open` reads, also while another process
    trains. Usable as a context manager.
    """

    def __init__(self, path: Path, info: dict[str, Any], lock: int | None = None, log: Log | None = None):
        self.path, self.info, self._lock, self._log = path, info, lock, log

    @classmethod
    def create(cls, out: str | Path, config: dict[str, Any], resume: bool = False, wandb: bool = False) -> "Run":
        """Starts the run `out` or, with `resume=True`, continues the one there, if there is one.

        On resumption the metrics that were logged after the newest checkpoint are dropped: they will be logged again.

        Raises `OffroadError` if another process uses the folder, if it holds a run and `resume` is False, or if it was
        started with another configuration.
        """
        out = Path(out)
        try:
            (out / "checkpoints").mkdir(parents=True, exist_ok=True)
            lock = _lock(out)
            try:
                return cls._start(out, strict_json.strict(config), resume, wandb, lock)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise OffroadError(
                f"cannot use '{out}' as a run folder: {error.strerror}; choose another folder"
            ) from error

    @classmethod
    def _start(cls, out: Path, config: dict[str, Any], resume: bool, wandb: bool, lock: int) -> "Run":
        if not (out / "config.json").exists():
            info = {"format": FORMAT, "created": datetime.now(UTC).isoformat(timespec="seconds"), "config": config}
            info |= {"versions": _versions(), "git": _git_commit(), "machine": _machine()}
            _write_whole(out / "config.json", strict_json.dumps(info, indent=2))
        elif not resume:
            raise OffroadError(
                f"'{out}' already holds a run; resume=True (--resume) continues it, or choose another folder"
            )
        info = _read_info(out)
        if differing := _differences(info["config"], config):
            raise OffroadError(
                f"'{out}' was started with another configuration: {'; '.join(differing)}; "
                "resume with the same one or choose another folder"
            )
        saved = checkpoint.steps(out / "checkpoints")
        log = Log(out, last_step=checkpoint.step_of(saved[-1]) if saved else None, wandb=config if wandb else None)
        return cls(out, info, lock, log)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Opens a run for reading. Raises `OffroadError`, with the nearest run beside it or in it, if it is none."""
        path = Path(path)
        if not (path / "config.json").is_file():
            near = [p.parent for folder in (path, path.parent) for p in folder.glob("*/config.json")]
            if near:
                raise unknown("run", str(path), [str(p) for p in near])
            raise OffroadError(
                f"'{path}' is not a run folder: it holds no config.json; give the folder of a training run"
            )
        return cls(path, _read_info(path))

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was created with, as JSON."""
        return self.info["config"]

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines: `step`, `time` (seconds since 1970) and the metrics."""
        return read_metrics(self.path / "metrics.jsonl")

    def load_latest(self) -> tuple[int, Saved] | None:
        """The newest checkpoint and its step; None if there is none yet. Raises `OffroadError` if it is damaged."""
        saved = checkpoint.load_latest(self.path / "checkpoints")
        return (checkpoint.step_of(saved.folder), saved) if saved else None

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Saves the checkpoint of `step` and deletes all but the newest two. Log the metrics of `step` before."""
        with self._writing() as log:
            log.sync()
        folder = self.path / "checkpoints"
        checkpoint.save(folder / f"step_{step:012d}", tree)
        checkpoint.prune(folder)

    def log(self, step: int, metrics: dict[str, float | list[float]]) -> None:
        """Logs metrics of `step`: scalars, or lists with a value for each seed or episode."""
        with self._writing() as log:
            log.write(step, metrics)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            os.close(self._lock)
        self._log = self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[Log]:
        if self._log is None:
            raise OffroadError(
                f"the run '{self.path}' is open for reading only; Run.create(..., resume=True) continues it"
            )
        try:
            yield self._log
        except OSError as error:
            raise OffroadError(
                f"cannot log to '{self.path}': {error.strerror}; free some space or mend the permissions, then resume"
            ) from error


def _lock(out: Path) -> int:
    """An exclusive lock on the folder, which the system releases when the process ends in whatever way."""
    lock = os.open(out / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 20).decode() or "unknown"
        os.close(lock)
        raise OffroadError(
            f"the run folder '{out}' is in use by process {pid}; wait until it ends, stop it or choose another folder"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        info = json.loads(file.read_text())
        found = info["format"]
        info["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OffroadError(f"'{file}' is not the configuration of a run; choose another folder") from error
    if found != FORMAT:
        raise OffroadError(
            f"the run '{path}' is of format {found!r}, expected {FORMAT}; use the version of offroad that wrote it "
            f"({info.get('versions', {}).get('offroad')}) or choose another folder"
        )
    return info


def _differences(found: Any, given: Any, path: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(given, dict):
        keys = sorted(found.keys() | given.keys())
        nothing = object()
        pairs = [(f"{path}.{k}".lstrip("."), found.get(k, nothing), given.get(k, nothing)) for k in keys]
        return [
            line
            for name, a, b in pairs
            for line in (
                [f"{name} is new"]
                if a is nothing
                else [f"{name} is gone"]
                if b is nothing
                else _differences(a, b, name)
            )
        ]
    return [] if found == given else [f"{path} was {found!r}, now {given!r}"]


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("offroad", "jax", "mujoco", "gymnasium", "numpy", "equinox", "optax"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git_commit() -> str | None:
    """The commit of the working directory, with "-dirty" if files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass  # not Linux
    return {"cpu": cpu, "cores": os.cpu_count(), "platform": platform.platform()}


def _write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there either whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
