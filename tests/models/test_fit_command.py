"""`offroad fit residual`: from a CSV log and an XML file to a model and a report; and mistakes in a line."""

import json

import numpy as np
import pytest
from residual_pair import ARM, arm, logged

from offroad.cli import main
from offroad.data import tables
from offroad.errors import OffroadError
from offroad.fit import fit_residual, simple_simulator
from offroad.models import FitConfig, load

QUICK = FitConfig(hidden=(8,), members=2, updates=100, batch=64, tuning=10, horizon=8, windows=40, tuning_batch=8)


@pytest.fixture
def files(tmp_path):
    log = logged(arm(friction=0.1), rows=900, delay=1)
    columns = {"time": 0.01 * np.arange(900), "q": log.q, "qd": log.qd, "u": log.u}
    tables.write_csv(tmp_path / "log.csv", columns)
    (tmp_path / "arm.xml").write_text(ARM % {"integrator": "implicitfast", "friction": 0, "load": 0.5})
    return tmp_path


def test_a_log_becomes_a_model_and_a_report(files):
    results = fit_residual(str(files / "arm.xml"), files / "log.csv", files / "out", config=QUICK)
    saved = json.loads((files / "out" / "results.json").read_text())
    assert set(saved["arms"]) == {
        "simple", "physical identification", "linear identification", "linear identification, windows",
        "residual, single steps", "residual", "end-to-end network",
    }  # fmt: skip
    free = [name for name in results["residual"] if name.startswith("free run")]
    assert len(free) == 1
    assert results.values("residual", free[0])[0] < results.values("simple", free[0])[0]
    assert load(files / "out").delay == 1
    assert any("inertia gauge" in claim.claim for claim in results.claims)
    page = (files / "out" / "report.html").read_text()
    assert "linear identification" in page
    assert "data:image/png" in page


def test_mistakes_are_one_line(files, capsys):
    for words, message in (
        (["--simple", "HamrSimpel-v0"], "did you mean"),
        (["--simple", str(files / "leg.xml")], "does not exist"),
        (["--simple", str(files / "arm.xml"), "--joints", "c"], "no hinge or slider 'c'"),
    ):
        assert main(["fit", "residual", "--log", str(files / "log.csv"), *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


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
