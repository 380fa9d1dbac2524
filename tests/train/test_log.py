import io
import json
import math
import sys
import warnings

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offroad.train import progress
from offroad.train.log import Log, read_metrics
from offroad.train.progress import Progress


def scalars(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_are_strict_json_lines_that_are_read_back_exactly(tmp_path):
    log = Log(tmp_path)
    log.write(1, {"loss": 0.1, "returns": [1.0, math.inf]})
    log.write(2, {"loss": math.nan, "worst": -math.inf, "count": 3})
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():  # not closed: lines are there at once
        json.loads(line, parse_constant=pytest.fail)
    log.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["returns"]) == (1, 0.1, [1.0, math.inf])
    assert math.isnan(second["loss"])
    assert (second["worst"], second["count"]) == (-math.inf, 3)
    assert first["time"] <= second["time"]


def test_tensorboard_shows_scalars_and_the_means_of_lists(tmp_path):
    log = Log(tmp_path)
    log.write(1, {"loss": 0.5, "returns": [1.0, 2.0], "none": []})
    log.write(5, {"loss": 0.25})
    log.close()
    assert scalars(tmp_path, "loss") == [(1, 0.5), (5, 0.25)]
    assert scalars(tmp_path, "returns") == [(1, 1.5)]


@pytest.mark.parametrize(("last_step", "kept"), [(None, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_resumption_drops_later_steps_and_a_line_that_was_cut_short(tmp_path, last_step, kept):
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"x": float(step)})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 3, "x": 3')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    log = Log(tmp_path, last_step=last_step)
    log.write(10, {"x": 10.0})
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [*kept, 10]
    assert [step for step, _ in scalars(tmp_path, "x")] == [*kept, 10]


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_failing_weights_and_biases_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.warns(UserWarning, match="Weights & Biases is off"):
        log = Log(tmp_path, wandb={"seed": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.write(1, {"x": 1.0})
        log.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["x"] == 1.0


def test_progress_prints_plain_lines_without_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    out = io.StringIO()
    with Progress(2_000, start=1_000, console=Console(file=out, width=120)) as bar:
        bar.update(1_500, score=12.345)
        bar.update(2_000)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 1,500 of 2,000  ")
    assert all(word in lines[0] for word in ("steps/s", "min left", "score 12.3"))
    assert "\x1b" not in out.getvalue()


def test_progress_without_a_terminal_is_quiet_between_lines():
    out = io.StringIO()
    with Progress(100, console=Console(file=out)) as bar:
        for step in range(100):
            bar.update(step)
        assert out.getvalue() == ""
    assert out.getvalue().startswith("step 99 of 100")


def test_progress_is_a_bar_on_a_terminal():
    out = io.StringIO()
    with Progress(100, console=Console(file=out, force_terminal=True, width=120)) as bar:
        bar.update(50, score=1.0)
    assert "50/100" in out.getvalue()
    assert "score 1" in out.getvalue()
