"""Metrics as JSON lines, TensorBoard events and, where wanted and possible, Weights & Biases."""

import json
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from offroad.data import strict_json


class Log:
    """Appends to `folder/metrics.jsonl` and `folder/tensorboard/`.

    `last_step` is the step that a resumed run continues from (None: from the start): lines of later steps are dropped,
    in TensorBoard too. `wandb` is the configuration to send to Weights & Biases, None to leave it alone; its failure
    never stops a run.
    """

    def __init__(self, folder: Path, last_step: int | None = None, wandb: dict[str, Any] | None = None):
        path = folder / "metrics.jsonl"
        resumed = path.exists()
        if resumed:
            _drop_after(path, -1 if last_step is None else last_step)
        self._file = open(path, "a")  # noqa: SIM115
        self._events = _event_file(folder / "tensorboard")
        if resumed:
            # TensorBoard hides all earlier events from this step on.
            start = 0 if last_step is None else last_step + 1
            self._events.add_event(
                Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START))
            )
        self._wandb = None if wandb is None else _start_wandb(folder, wandb)

    def write(self, step: int, metrics: dict[str, float | list[float]]) -> None:
        """Logs scalars and lists (of seeds, of episodes), which TensorBoard and Weights & Biases get the means of."""
        now = time.time()
        values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        self._file.write(strict_json.dumps({"step": step, "time": now, **values}) + "\n")
        self._file.flush()
        means = {name: float(np.mean(value)) for name, value in metrics.items() if np.size(value)}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=mean) for name, mean in means.items()])
        self._events.add_event(Event(wall_time=now, step=step, summary=summary))
        if self._wandb is not None:
            try:
                self._wandb.log(means, step=step)
            except Exception as error:
                _warn_of_wandb(error)
                self._wandb = None

    def sync(self) -> None:
        """Forces what was logged to the disk."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        for file in (self._file, self._events):
            with suppress(OSError):  # a full disk, which the last `write` or `sync` has told
                file.close()
        if self._wandb is not None:
            try:
                self._wandb.finish()
            except Exception as error:
                _warn_of_wandb(error)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, with NaN and infinities as floats; a last line that was cut short is left out."""
    if not path.exists():
        return []
    return [{name: _number(value) for name, value in line.items()} for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for text in path.read_text().splitlines(keepends=True):
        try:
            found.append((text, json.loads(text)))
        except ValueError:
            break  # a process was killed while it wrote this line
    return found


def _number(value: Any) -> Any:
    return [_number(v) for v in value] if isinstance(value, list) else float(value) if isinstance(value, str) else value


def _drop_after(path: Path, last_step: int) -> None:
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "w") as file:
        file.writelines(text for text, line in _lines(path) if line["step"] <= last_step and text.endswith("\n"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _event_file(folder: Path) -> EventFileWriter:
    # TensorBoard reads files in the order of their names. They begin with the second, after which process and count
    # say nothing of the order: a run that is resumed within a second waits for the next one.
    if any(int(path.name.split(".")[3]) == int(time.time()) for path in folder.glob("events.out.tfevents.*")):
        time.sleep(1 - time.time() % 1)
    return EventFileWriter(str(folder))


def _start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]

        return wandb.init(dir=str(folder), name=folder.name, config=config)
    except Exception as error:
        _warn_of_wandb(error)
        return None


def _warn_of_wandb(error: Exception) -> None:
    warnings.warn(f"Weights & Biases is off for this run: {error}; metrics.jsonl and TensorBoard go on", stacklevel=3)
