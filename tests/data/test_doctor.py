"""A healthy data set has no defects; each defect, brought into it alone, is found in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad import cli
from offroad.data.dataset import Dataset
from offroad.data.doctor import examine
from offroad.data.spaces import Spaces
from offroad.data.writers import save
from offroad.errors import OffroadError

STEPS, EPISODES = 50, 40
ROWS = STEPS * EPISODES


def healthy(noise=0.3, **changes):
    """Random walks that are steered home with some noise; 40 episodes of 50 steps, or fewer when home comes early."""
    random = np.random.default_rng(0)
    observations = np.cumsum(random.normal(size=(EPISODES, STEPS + 1, 3)), axis=1).astype(np.float32)
    actions = 0.9 * np.tanh(-observations[:, :-1, :2] / 5 + noise * random.normal(size=(EPISODES, STEPS, 2)))
    ends = np.arange(ROWS) % STEPS == STEPS - 1
    columns = {
        "observations": observations[:, :-1].reshape(ROWS, 3),
        "actions": actions.reshape(ROWS, 2),
        "rewards": -np.abs(observations[:, 1:]).mean(axis=-1).reshape(ROWS),
        "terminated": np.zeros(ROWS, bool),
        "truncated": ends,
        "final_observations": observations[:, -1],
    }
    return Dataset(**{**columns, **changes})


def put(array, row, value):
    array = array.copy()
    array[row] = value
    return array


def test_a_healthy_data_set_has_no_defects():
    found = examine(healthy())
    assert found.defects == []
    assert found.columns["observations"]["shape"] == [ROWS, 3]
    assert found.facts["episodes"]["median"] == STEPS
    assert found.facts["returns"]["mean"] == pytest.approx(healthy().rewards.sum() / EPISODES, rel=1e-5)
    assert found.settings["discount"] == "0.96"  # 1 - 2 / 50
    json.dumps(found.to_json())


def appended_twice(data):
    twice = data.take(np.tile(np.arange(EPISODES), 2))
    return twice.take(np.concatenate([np.arange(EPISODES), [EPISODES]]))


DEFECTS = {
    "observations contain 1 numbers that are NaN or infinite, first at row 812;": lambda d: replace(
        d, observations=put(d.observations, (812, 1), np.nan)
    ),
    "rewards contain 2 numbers that are NaN or infinite, first at row 7;": lambda d: replace(
        d, rewards=put(d.rewards, [7, 9], np.inf)
    ),
    "rewards contain 2000 numbers that are NaN": lambda d: replace(d, rewards=np.full(ROWS, np.nan)),
    "actions contain 4000 numbers that are NaN": lambda d: replace(d, actions=np.full((ROWS, 2), np.inf)),
    "actions contain 1 numbers that are NaN": lambda d: replace(d, actions=put(d.actions, (3, 1), np.inf)),
    "observations[1] never change and tell nothing;": lambda d: replace(
        d,
        observations=put(d.observations, (slice(None), 1), 2),
        final_observations=put(d.final_observations, (slice(None), 1), 2),
    ),
    "actions[0] never change;": lambda d: replace(d, actions=put(d.actions, (slice(None), 0), 0.1)),
    "last exactly 50 steps: a time limit is stored as a terminal;": lambda d: replace(
        d, terminated=d.truncated, truncated=d.terminated
    ),
    "40 episodes were cut off and what came next is unknown;": lambda d: replace(d, final_observations=None),
    "1 rows are both terminated and truncated;": lambda d: replace(d, terminated=put(d.terminated, ROWS - 51, True)),
    "after row 499, inside an episode; is an end missing there?": lambda d: replace(
        d,
        observations=d.observations + 500 * (np.arange(ROWS) >= 500)[:, None],
        truncated=put(d.truncated, 499, False),
        final_observations=np.delete(d.final_observations, 9, axis=0),
    ),
    "in 1 rows beyond -1 to 1 (guessed); clip them": lambda d: replace(d, actions=put(d.actions, (3, 1), 1.3)),
    "1 numbers of actions lie at their bounds": lambda d: replace(d, actions=put(d.actions, (3, 1), 1)),
    "50 rows (2.4%) repeat an earlier one;": appended_twice,
    "every reward is 1; there is nothing to tell": lambda d: replace(d, rewards=np.ones(ROWS)),
    "scale them to about 1": lambda d: replace(d, rewards=1000 * d.rewards),
    "what a reader said": lambda d: replace(d, notes=("what a reader said",)),
}


@pytest.mark.parametrize("line", DEFECTS)
def test_one_defect_one_line(line):
    found = examine(DEFECTS[line](healthy())).defects
    assert len(found) == 1, found
    assert line in found[0]
    assert "\n" not in found[0]


def bandit(propensities, actions=None):
    random = np.random.default_rng(1)
    n = len(propensities)
    return Dataset(
        observations=random.normal(size=(n, 2)),
        actions=random.integers(4, size=n) if actions is None else actions,
        rewards=random.integers(2, size=n),
        terminated=np.ones(n),
        truncated=np.zeros(n),
        propensities=propensities,
    )


def test_propensities():
    fair = np.full(2000, 0.25)
    found = examine(bandit(fair))
    assert found.defects == []
    assert found.facts["propensities"]["effective share of rows"] == pytest.approx(1)
    assert found.method == "off-policy evaluation"
    assert found.settings["discount"] == "0"
    for wrong, line in {
        (0.0,): "1 propensities are no probabilities of what was done (first 0 at row 5)",
        (1e-6,): "the weights 1/propensity are worth 1 of 2000 rows",
    }.items():
        assert line in "\n".join(examine(bandit(put(fair, 5, wrong[0]))).defects)
    assert "the mean of 1/propensity is 2, but 4 actions were taken" in examine(bandit(2 * fair)).defects[0]


def test_actions_that_were_never_taken():
    spaces = Spaces(gym_spaces.Box(-9, 9, (2,)), gym_spaces.Discrete(6))
    data = bandit(np.full(2000, 0.25))
    assert examine(data, spaces).defects == ["2 of 6 actions were never taken; nothing is known of them"]
    odd = replace(data, actions=put(data.actions, 0, 6))
    assert "actions contain 6, which Discrete(6) does not" in examine(odd, spaces).defects[0]


def test_coverage_tells_a_deterministic_policy_from_a_random_one():
    def diversity(data):
        return examine(data).facts["coverage"]["action diversity in similar states"]

    random = np.random.default_rng(2).uniform(-0.9, 0.9, (ROWS, 2))
    still, noisy, blind = (diversity(d) for d in (healthy(0), healthy(0.5), replace(healthy(), actions=random)))
    assert still < 0.1 < noisy < 0.8 < blind


def test_bounds_are_those_of_the_environment():
    box = gym_spaces.Box(-0.5, 0.5, (2,))
    found = examine(healthy(), Spaces(gym_spaces.Box(-9, 9, (3,)), box))
    beyond = int((np.abs(healthy().actions) > 0.5).any(axis=1).sum())
    assert found.facts["actions"]["rows beyond"] == beyond
    assert "-0.5 to 0.5" in found.settings["clip actions"]
    with pytest.raises(OffroadError, match="the environment has shape"):
        examine(healthy(), Spaces(box, box))


def test_proposals_follow_the_data():
    sparse = replace(healthy(), rewards=np.isin(np.arange(ROWS), [99, 499]).astype(np.float32))
    found = examine(sparse)
    assert found.settings["rewards"].startswith("r - 1 for IQL, 10 r - 5 for CQL")
    assert examine(replace(healthy(), rewards=np.ones(ROWS))).method == "BC"
    assert examine(healthy(0, rewards=np.random.default_rng(0).normal(size=ROWS))).method == "10 %-BC"
    assert examine(healthy()).method == "IQL"
    assert examine(replace(bandit(np.full(2000, 0.25)), propensities=None)).method == "BC"


@pytest.mark.parametrize(("scale", "proposed"), [(1.0, False), (6.0, True), (0.01, True), ([1.0, 1.0, 0.01], True)])
def test_observations_far_from_unit_scale_are_to_be_normalised(scale, proposed):
    unit = healthy().observations / healthy().observations.std(0)
    found = examine(healthy(observations=np.float32(unit * scale)))
    assert ("normalise observations" in found.settings) == proposed


def test_the_command_line(tmp_path, capsys):
    save(healthy(final_observations=None), tmp_path / "walk.hdf5")
    assert cli.main(["data", "inspect", str(tmp_path / "walk.hdf5")]) == 0
    shown = capsys.readouterr().out
    assert "40 episodes were cut off" in shown
    assert "method: IQL" in shown
    assert cli.main(["data", "inspect", str(tmp_path / "walk.hdf5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["episodes"]["number"] == EPISODES
    (tmp_path / "log.csv").write_text("age,item,click\n1,2,0\n2,1,1\n")
    columns = ["observations=age,item", "actions=item", "rewards=click", "episode=age"]
    assert cli.main(["data", "inspect", str(tmp_path / "log.csv"), "--ends", "terminated", "--columns", *columns]) == 0
    assert "discount: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none.csv", "does not exist"),
        ("walk.npz --env Pendulum-v1", "'actions' shape (2,) per row, the environment has shape (1,)"),
        ("walk.npz --columns rewards", "has no '='"),
        ("walk.npz --ends terminatd", "terminatd"),
        ("broken.npz", "cut short"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(healthy(), "walk.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "walk.npz").read_bytes()[:5000])
    assert cli.main(["data", "inspect", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("offroad: ")
    assert error.count("\n") == 1
    assert message in error
