import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from offroad.errors import OffroadError
from offroad.train.run import Run

CONFIG = {"seed": 1, "sac": {"rate": 3e-4, "layers": (256, 256), "clip": float("inf")}}


def test_a_run_is_described_in_strict_json(tmp_path):
    with Run.create(tmp_path / "a" / "run", CONFIG) as run:
        assert run.config == {"seed": 1, "sac": {"rate": 3e-4, "layers": [256, 256], "clip": "Infinity"}}
    info = json.loads((tmp_path / "a" / "run" / "config.json").read_text(), parse_constant=pytest.fail)
    assert info["config"] == run.config
    assert info["versions"]["jax"]
    assert info["machine"]["cores"] == os.cpu_count()
    assert info["created"].startswith("20")


def test_a_run_continues_at_its_newest_checkpoint_and_drops_later_metrics(tmp_path):
    with Run.create(tmp_path, CONFIG) as run:
        assert run.load_latest() is None
        for step in range(10, 60, 10):
            run.log(step, {"loss": step / 10})
            if step <= 40:
                run.save(step, {"x": np.full(3, step)})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert [line["step"] for line in Run.open(tmp_path).metrics()] == [10, 20, 30, 40, 50]
    with Run.create(tmp_path, CONFIG, resume=True) as run:
        found = run.load_latest()
        assert found is not None
        assert found[0] == 40
        np.testing.assert_array_equal(found[1].value("x"), np.full(3, 40))
        run.log(50, {"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in run.metrics()][-2:] == [(40, 4.0), (50, 7.0)]
    assert len(run.metrics()) == 5


def test_resuming_before_the_first_checkpoint_starts_again(tmp_path):
    with Run.create(tmp_path, CONFIG, resume=True) as run:
        run.log(0, {"loss": 1.0})
    with Run.create(tmp_path, CONFIG, resume=True) as run:
        assert run.load_latest() is None
        assert run.metrics() == []


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path):
    Run.create(tmp_path, CONFIG).close()
    with pytest.raises(OffroadError, match="already holds a run; resume=True"):
        Run.create(tmp_path, CONFIG)
    other = {"seed": 2, "sac": {"rate": 3e-4, "layers": [256, 256]}, "new": None}
    with pytest.raises(OffroadError, match=r"new is new; sac.clip is gone; seed was 1, now 2;"):
        Run.create(tmp_path, other, resume=True)
    Run.create(tmp_path, CONFIG, resume=True).close()  # the refusals have left no lock


def test_another_format_and_damage_are_named(tmp_path):
    Run.create(tmp_path, CONFIG).close()
    file = tmp_path / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(OffroadError, match=r"of format 99, expected 1; use the version of offroad that wrote it \(\d"):
        Run.create(tmp_path, CONFIG, resume=True)
    for damaged in (text[:50], "[]", "{}"):
        file.write_text(damaged)
        with pytest.raises(OffroadError, match="is not the configuration of a run"):
            Run.open(tmp_path)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OffroadError, match=r"cannot use .*file"):
        Run.create(tmp_path / "file", CONFIG)


def test_reading_suggests_the_nearest_run_and_never_writes(tmp_path):
    Run.create(tmp_path / "hopper", CONFIG).close()
    with pytest.raises(OffroadError, match=r"did you mean '.*hopper'"):
        Run.open(tmp_path / "hoper")
    with pytest.raises(OffroadError, match="hopper'"):
        Run.open(tmp_path)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(OffroadError, match="is not a run folder"):
        Run.open(tmp_path / "empty" / "folder")
    run = Run.open(tmp_path / "hopper")
    with pytest.raises(OffroadError, match="reading only"):
        run.log(1, {"x": 1.0})
    with pytest.raises(OffroadError, match="reading only"):
        run.save(1, {"x": 1.0})
    assert not list((tmp_path / "hopper" / "checkpoints").iterdir())


def test_metrics_are_flushed_before_a_kill_and_the_lock_falls_with_the_process(tmp_path):
    script = """
import sys
from offroad.train.run import Run
run = Run.create(sys.argv[1], {"seed": 1})
run.log(1, {"x": 1.0})
run.save(1, {"x": 1.0})
run.log(2, {"x": 2.0})
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(OffroadError, match=f"in use by process {process.pid};"):
            Run.create(tmp_path, {"seed": 1}, resume=True)
        assert [line["x"] for line in Run.open(tmp_path).metrics()] == [1.0, 2.0]  # readers need no lock
        process.kill()
    with Run.create(tmp_path, {"seed": 1}, resume=True) as run:
        assert [line["x"] for line in run.metrics()] == [1.0]


# TensorBoard writes in a thread of its own, which may meet the limit too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_one_clear_error_while_logging(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run.create(tmp_path, CONFIG) as run:
        run.log(1, {"x": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size, limits[1]))
        try:
            with pytest.raises(OffroadError, match=r"cannot log to .*: File too large"):
                run.log(2, {"x": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(Run.open(tmp_path).metrics()) >= 1
