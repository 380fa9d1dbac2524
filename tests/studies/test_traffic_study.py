from dataclasses import replace

import numpy as np

from offroad.studies import load
from offroad.studies.study import Results, reproduce

STUDY = load("traffic")
TINY = replace(STUDY.profiles["quick"], decisions=1, rings=1)  # one round of training


def made_up(tmp_path, **changes):
    ppo = {
        "share of uniform flow, seen lengths": 0.98,
        "share of uniform flow, unseen lengths": 0.95,
        "speed std across cars, seen lengths [m/s]": 0.1,
        "smallest gap of the automated car [m]": 2.0,
        "speed at 260 m [m/s]": 4.8,
    }
    slower = {"share of uniform flow, seen lengths": 0.7}
    hacking = {"smallest gap of the automated car [m]": 0.5, "smallest gap without the guard [m]": -0.1}
    arms = {
        "human": {"speed of the first small wave [km/h]": -19.5},
        "follower_stopper": slower,
        "follower_stopper_cautious": slower,
        "pi_saturation": slower,
        "residual": {"share of uniform flow, seen lengths": 0.76},
        "ppo_without_failsafe": hacking,
        "ppo_in_sumo": {"speed at 260 m [m/s]": 4.75, "collisions": 0.0},
        "ppo": ppo | changes,
    }
    wrapped = {arm: {"metrics": {k: [v, v] for k, v in metrics.items()}} for arm, metrics in arms.items()}
    return Results("traffic", "cpu", tmp_path, arms=wrapped)


def test_the_verdict_of_made_up_results_turns_with_the_one_number_that_is_changed(tmp_path):
    assert [c.holds for c in STUDY.verdict(made_up(tmp_path))] == [True] * 11
    tailgating = STUDY.verdict(made_up(tmp_path, **{"smallest gap of the automated car [m]": 1.4}))
    assert [c.claim for c in tailgating if not c.holds] == ["... without tailgating: smallest gap"]
    slow = STUDY.verdict(made_up(tmp_path, **{"share of uniform flow, seen lengths": 0.69}))
    assert [c.holds for c in slow].count(False) == 3  # its own bound, and both controllers are faster


def test_one_round_of_training_leaves_the_controller_underneath_nearly_as_it_was(tmp_path):
    study = replace(STUDY, profiles={"tiny": TINY})
    arms = ["follower_stopper_cautious", "residual"]
    results = reproduce(study, "tiny", arms=arms, out=tmp_path)
    share = [results.iqm(arm, "share of uniform flow, seen lengths") for arm in arms]
    assert 0.4 < share[0] < 0.8
    np.testing.assert_allclose(share[1], share[0], atol=0.05)
    assert min(results.values("residual", "smallest gap of the automated car [m]")) > 0
    assert {c.holds for c in results.claims if "on top of" not in c.claim} == {None}
    assert (tmp_path / "figures" / "speeds.png").exists()
    assert "cautious FollowerStopper" in (tmp_path / "report.html").read_text()
