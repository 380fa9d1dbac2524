"""The study of the playlist with a budget of seconds: it runs and grades; what it measures then means little."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from offroad.studies import load, playlist
from offroad.studies.playlist import choice, listeners
from offroad.studies.study import Context, reproduce

TINY = playlist.PlaylistBudget(
    seeds=1, minutes=1, sessions=60, judging_sessions=90, updates=20, evaluation_updates=10, listeners=50, episodes=12
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = dataclasses.replace(load("playlist"), profiles={"tiny": TINY})
    out = tmp_path_factory.mktemp("playlist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "WEIGHTS", (0.0, 1.0))
        return reproduce(study, "tiny", out=out, console=Console(file=io.StringIO()))


def test_all_arms_run_and_all_claims_are_graded(results):
    assert set(results.arms) == set(playlist.STUDY.arms)
    assert all(claim.holds is not None for claim in results.claims)
    assert {p.name for p in (results.folder / "figures").iterdir()} == {"cost.png", "values.png", "ranking.png"}
    json.loads((results.folder / "results.json").read_text())


def test_what_exploration_costs_is_counted(results):
    told = results["online"]
    kept = results.artefact("online", "cost")
    assert kept["lost"][-1] == told[playlist.SPENT_LOST]
    assert (np.diff(kept["lost"], axis=0) >= 0).all()
    assert told[playlist.SPENT_LOST][0] == round(told[playlist.SPENT_LOST][0], 2)  # listeners are whole
    assert 0 < told[playlist.SPENT_LOST][0] <= told[playlist.SPENT][0]
    assert results["selection"]["real sessions used"] == [12.0]


def test_the_log_is_the_safe_policys(results):
    told = results["behaviour"]
    assert told["sessions in the log"] == [60.0]
    assert 0.2 < told["sessions lost in the log"][0] / 60 < 0.65


def test_policies_are_judged_by_another_log_than_they_learnt_from(tmp_path):
    context = Context(tmp_path, "arm", [0], {}, print)
    learnt, judging = listeners.log(0, TINY, context), listeners.judging_log(0, TINY, context)
    assert len(learnt.ends) == 60
    assert len(judging.ends) == 90
    assert not np.array_equal(learnt.actions[:500], judging.actions[:500])
    assert (learnt.info["left"] <= learnt.terminated).all()
    assert 0.2 < learnt.info["left"].sum() / 60 < 0.65


def test_the_interval_of_the_open_bandit_sample_contains_what_was_measured(results):
    told = {name: values[0] for name, values in results["open_bandit"].items()}
    assert told["clicks measured, Thompson [%]"] == pytest.approx(0.42)
    assert told["SNIPS, lower end [%]"] < 0.42 < told["SNIPS, upper end [%]"]
    assert told["DR, lower end [%]"] < 0.42 < told["DR, upper end [%]"]
    assert 1000 < told["effective impressions"] < 10_000
