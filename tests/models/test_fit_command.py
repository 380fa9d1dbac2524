"""`offroad fit residual`: from a CSV log and an XML file to a model and a report; and mistakes in a line."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from residual_pair import ARM, arm, logged

from offroad.cli import main
from offroad.cli.fitting import as_options
from offroad.data import tables
from offroad.errors import OffroadError
from offroad.fit import fit_residual, simple_simulator
from offroad.models import FitConfig, load, read_log

QUICK = FitConfig(hidden=(8,), members=2, updates=100, batch=64, tuning=10, horizon=8, windows=40, tuning_batch=8)


@pytest.fixture
def files(tmp_path):
    log = logged(arm(friction=0.1), rows=900, delay=1)
    columns = {"time": 0.01 * np.arange(900), "q": log.q, "qd": log.qd, "u": log.u}
    tables.write_csv(tmp_path / "log.csv", columns)
    tables.write_csv(tmp_path / "untimed.csv", {"q": log.q, "qd": log.qd, "u": 20 * log.u})
    tables.write_csv(tmp_path / "cut.csv", {k: np.delete(x, range(300, 320), 0) for k, x in columns.items()})
    tables.write_csv(tmp_path / "short.csv", {k: x[:200] for k, x in columns.items()})
    (tmp_path / "broken.xml").write_text("<mujoco><leg/></mujoco>")
    (tmp_path / "arm.xml").write_text(ARM % {"integrator": "implicitfast", "friction": 0, "load": 0.5})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"), [("log.csv", {}), ("untimed.csv", {"dt": 0.01, "delay": 1, "ignore": ("units",)})]
)
def test_a_log_becomes_a_model_and_a_report(files, name, options):
    results = fit_residual(str(files / "arm.xml"), files / name, files / "out", config=QUICK, **options)
    saved = json.loads((files / "out" / "results.json").read_text())
    assert set(saved["arms"]) == {
        "simple", "physical identification", "linear identification", "linear identification, windows",
        "residual, single steps", "residual", "end-to-end network",
    }  # fmt: skip
    free = [name for name in results["residual"] if name.startswith("closed loop")]
    assert len(free) == 1
    assert results.values("residual", free[0])[0] < results.values("simple", free[0])[0]
    assert load(files / "out").delay == 1
    for arm_of in ("residual", "physical identification"):
        assert results.values(arm_of, "fit [s]")[0] > 0
        assert {"one step", "8 steps", free[0]} < set(results[arm_of])
    assert any("inertia gauge" in claim.claim for claim in results.claims)
    page = (files / "out" / "report.html").read_text()
    assert "linear identification" in page
    assert "data:image/png" in page


def test_mistakes_are_one_line(files, capsys):
    for words, message in (
        (["--simple", "HamrSimpel-v0"], "did you mean"),
        (["--simple", str(files / "leg.xml")], "does not exist"),
        (["--simple", str(files / "broken.xml")], "unrecognized element Element 'leg'"),
        (["--simple", "HamrSimple-v0", "--joints", "a", "b"], "leave joints out"),
        (["--simple", str(files / "arm.xml"), "--out", str(files / "log.csv")], "log.csv' cannot be made"),
        (["--simple", str(files / "arm.xml"), "--joints", "c"], "no hinge or slider 'c'"),
        (["--simple", str(files / "arm.xml"), "--joints", "a"], "that the log holds, in its order: --joints"),
        (["--simple", str(files / "arm.xml"), "--q", "hip", "knee"], "no column 'hip'"),
        (["--simple", str(files / "arm.xml"), "--log", str(files / "cut.csv")], "or pass --gaps split to"),
        (["--simple", str(files / "arm.xml"), "--log", str(files / "short.csv")], "leaves 159 steps to learn from"),
        (["--simple", str(files / "arm.xml"), "--dt", "10"], "offroad: the rows of the log are 10 apart"),
        (["--simple", str(files / "arm.xml"), "--delay", "800"], "offroad: the delay is 800 rows"),
        (["--simple", str(files / "arm.xml"), "--log", str(files / "untimed.csv")], "no column of times and no dt"),
        (["--simple", str(files / "arm.xml"), "--log", str(files / "untimed.csv"), "--dt", "0.01"], "controls 0.0"),
        (
            ["--simple", str(files / "arm.xml"), "--log", str(files / "untimed.csv"), "--dt", "0.01", "--delay", "1",
             "--ignore", "units", "signal", "constant", "--form", "dynamics", "--joints", "a"],
            "the log has 2 joints, the simulator 1",
        ),
    ):  # fmt: skip
        log = [] if "--log" in words else ["--log", str(files / "log.csv")]
        assert main(["fit", "residual", *log, *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert "study" not in said


def test_messages_speak_of_options_on_the_command_line():
    for message, said in (
        ("or pass ignore=('units',)", "or pass --ignore units"),
        ("for example q=('hip', 'knee'), u=('torque',)", "for example --q hip knee, --u torque"),
        ("name the column, time=..., or pass dt=", "name the column, --time ..., or pass --dt"),
        ("read=lambda env: (q, qd) and sub=('a',)", "read=lambda env: (q, qd) and sub=('a',)"),
    ):
        assert as_options(message) == said


def test_columns_with_names_of_their_own_make_the_same_log(files, monkeypatch):
    read = {}

    def until_read(simple, log, **options):
        read["log"] = log
        raise OffroadError("so far")

    monkeypatch.setattr("offroad.fit.compare", until_read)
    log = read_log(files / "log.csv")
    columns = {"stamp": 0.01 * np.arange(900), "hip": log.q[:, 0], "knee": log.q[:, 1], "volts": log.u}
    tables.write_csv(files / "named.csv", columns)
    words = ["--time", "stamp", "--q", "hip", "knee", "--u", "volts_0", "volts_1", "--out", str(files / "out")]
    with pytest.raises(OffroadError, match="so far"):
        fit_residual(
            str(files / "arm.xml"), files / "named.csv", files / "out",
            columns={"q": ("hip", "knee"), "u": "volts", "time": "stamp"},
        )  # fmt: skip
    np.testing.assert_allclose(read["log"].q, log.q)
    np.testing.assert_array_equal(read.pop("log").u, log.u)
    assert main(["fit", "residual", "--simple", str(files / "arm.xml"), "--log", str(files / "named.csv"), *words]) == 2
    np.testing.assert_array_equal(read["log"].u, log.u)


def test_hamr_is_known_with_its_limbs():
    simulator, limbs = simple_simulator("HamrSimple-v0")
    assert limbs is not None
    assert len(limbs) == 4
    assert simulator.joints[:2] == ("FL_swing", "FL_lift")
    # mirrored: the same action, mirrored, moves every leg alike
    u = np.zeros((1, 8))
    for limb in limbs:
        u[0, list(limb.inputs)] = 0.3 * np.array(limb.input_signs)
    zero = np.zeros((1, 8))
    q, _ = simulator.with_dt(1.0).step(zero, zero, u, zero)
    swings = [q[0, list(limb.joints)] * np.array(limb.joint_signs) for limb in limbs]
    assert np.abs(swings[0]).min() > 1e-3
    for other in swings[1:]:
        np.testing.assert_allclose(other, swings[0], rtol=0.1)
    with pytest.raises(OffroadError):
        simple_simulator("nonsense")


def test_the_log_of_the_example_makes_a_report(tmp_path):
    """The second domain: a cheetah with hidden friction, delay, weak motors and heavier feet."""
    log = Path(__file__).parents[2] / "examples" / "residual_cheetah.csv"
    joints = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
    config = dataclasses.replace(QUICK, updates=300)
    results = fit_residual("HalfCheetah-v5", log, tmp_path, joints=joints, config=config)
    for horizon in ("one step", "8 steps"):
        assert results.values("residual", horizon)[0] < results.values("linear identification", horizon)[0]
        assert results.values("linear identification", horizon)[0] < 0.5 * results.values("simple", horizon)[0]
    assert (tmp_path / "report.html").exists()
    assert load(tmp_path).joints == joints
    assert load(tmp_path).delay > 0
