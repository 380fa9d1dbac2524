"""The data sets of the mazes: waypoints, flags, rewards and files."""

import json

import numpy as np
import pytest

from offroad.cli import main
from offroad.data.readers import load
from offroad.envs.maze import recipes
from offroad.envs.maze.maps import LARGE, MEDIUM, cell_at, centre
from offroad.errors import OffroadError


@pytest.fixture(scope="module")
def point():
    return recipes.make("pointmaze-umaze-diverse", 5000, seed=1, num_threads=1)


@pytest.fixture(scope="module")
def ant():
    return recipes.make("antmaze-umaze-diverse", 2500, num_threads=1)


@pytest.fixture(params=["point", "ant"])
def made(request):
    return request.getfixturevalue(request.param)


# --- waypoints


def test_waypoints_are_in_the_next_cell_and_stay_until_the_cell_changes():
    random = np.random.default_rng(0)
    starts, goals = (LARGE.free[random.integers(len(LARGE.free), size=200)] for _ in range(2))
    xy, goal = centre(starts) + random.uniform(-1.9, 1.9, (200, 2)), centre(goals) + 0.5
    waypoints = recipes.Waypoints(LARGE, 200, random)
    waypoints.restart(np.ones(200, bool))
    first = waypoints(xy, goal)
    there = (starts == goals).all(axis=1)
    assert (first[there] == goal[there]).all()
    following = LARGE.next_cell(starts, goals)
    assert (np.abs(first - centre(following))[~there] <= 1).all()
    assert np.abs(first - centre(following))[~there].max() > 0.9
    assert (waypoints(centre(starts), goal) == first).all()
    assert (cell_at(waypoints(centre(following), goal)) == LARGE.next_cell(following, goals)).all()


def test_waypoints_of_a_body_that_was_put_elsewhere_are_new():
    waypoints = recipes.Waypoints(MEDIUM, 2, np.random.default_rng(0))
    xy, goal = np.zeros((2, 2)), np.full((2, 2), 20.0)
    waypoints.restart(np.ones(2, bool))
    first = waypoints(xy, goal)
    waypoints.restart(np.array([True, False]))
    second = waypoints(xy, goal)
    assert (first[0] != second[0]).all()
    assert (first[1] == second[1]).all()


# --- data


def test_the_next_row_is_what_came_next_within_episodes_only(made):
    c = made.columns
    ends = np.flatnonzero(c["terminated"] | c["truncated"])
    assert ends[-1] == len(c["rewards"]) - 1
    assert c["final_observations"].shape == (len(ends), c["observations"].shape[1])
    jump = np.linalg.norm(np.diff(c["observations"][:, :2], axis=0), axis=1)
    inner = np.setdiff1d(np.arange(len(jump)), ends)
    assert jump[inner].max() < 1.2  # m in 0.1 s
    last = np.linalg.norm(c["final_observations"][:, :2] - c["observations"][ends, :2], axis=1)
    assert last.max() < 1.2
    restarts = np.intersect1d(np.flatnonzero(c["truncated"]), ends)[:-1]
    assert np.median(np.linalg.norm(c["observations"][restarts + 1, :2] - c["observations"][restarts, :2], axis=1)) > 2


def test_rewards_and_ends_are_those_of_the_evaluation_goal(point):
    c = point.columns
    after = np.vstack((c["observations"][1:], c["observations"][:1]))
    ends = np.flatnonzero(c["terminated"] | c["truncated"])
    after[ends] = c["final_observations"]
    near = np.linalg.norm(after - [0.0, 8.0], axis=1) <= 0.5
    assert (c["terminated"] == near).all()
    assert (c["rewards"] == near).all()
    assert not (c["terminated"] & c["truncated"]).any()
    assert 0 < point.columns["terminated"].sum() == near.sum()


def test_journeys_are_cut_off_where_they_arrive(point):
    c = point.columns
    ends = np.flatnonzero(c["terminated"] | c["truncated"])
    finals, goals = c["final_observations"], c["info/goal"][ends]
    arrived = np.linalg.norm(finals - goals, axis=1) <= 0.5
    assert point.provenance["arrivals"] == point.provenance["journeys"] == arrived.sum()  # the point always arrives
    before = np.linalg.norm(c["observations"] - c["info/goal"], axis=1) <= 0.5
    assert before.sum() <= 0.05 * point.provenance["journeys"]  # but for those that start there


def test_actions_are_noisy_and_within_bounds(made):
    actions = made.columns["actions"]
    assert np.abs(actions).max() <= 1
    assert len(np.unique(actions.round(4))) > 100
    assert np.isfinite(made.columns["observations"]).all()


def test_starts_and_goals_are_those_of_the_kind():
    assert {tuple(c) for c in recipes.Recipe.named("antmaze-large-diverse").goals} == {tuple(c) for c in LARGE.free}
    play = recipes.Recipe.named("antmaze-medium-play")
    assert {tuple(c) for c in play.goals} == {(2, 6), (5, 1), (6, 5)}  # the G of BIG_MAZE in D4RL's maze_env.py
    assert {tuple(c) for c in play.starts} == {(1, 1), (2, 6), (5, 1), (6, 5)}
    fixed = recipes.Recipe.named("pointmaze-umaze")
    assert (fixed.starts.tolist(), fixed.goals.tolist()) == ([[1, 1]], [[3, 1]])


def test_a_seed_gives_the_same_data_whatever_the_threads():
    a, b, c = (recipes.make("antmaze-umaze-play", 1100, seed, num_threads=k) for seed, k in ((3, 1), (3, 2), (4, 1)))
    for name, column in a.columns.items():
        assert np.array_equal(column, b.columns[name])
    assert len(a.columns["rewards"]) == 1100
    assert not np.array_equal(a.columns["observations"], c.columns["observations"])


# --- the command


def test_the_command_writes_a_file_that_is_read_back(tmp_path, capsys):
    path = tmp_path / "set.npz"
    assert main(["data", "make", "pointmaze-umaze-diverse", "--steps", "5_000", "--seed", "1", "--out", str(path)]) == 0
    assert "journeys arrived" in capsys.readouterr().out
    dataset = load(path)
    assert len(dataset) == 5000
    assert dataset.notes == ()
    assert dataset.info["goal"].shape == (5000, 2)
    made = recipes.make("pointmaze-umaze-diverse", 5000, seed=1)
    assert np.array_equal(dataset.observations, made.columns["observations"])
    assert np.array_equal(dataset.final_observations, made.columns["final_observations"])
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["provenance"]))
    assert (about["recipe"], about["seed"], about["steps"]) == ("pointmaze-umaze-diverse", 1, 5000)
    assert {"offroad", "mujoco", "numpy"} <= about.keys()


@pytest.mark.parametrize(
    ("name", "out", "steps", "words"),
    [
        ("antmaze-medum-diverse", "a.npz", "10", "did you mean 'antmaze-medium-diverse'"),
        ("pointmaze-umaze", "a.hdf5", "10", "expected the name of an .npz file"),
        ("pointmaze-umaze", "nowhere/a.npz", "10", "in a folder that exists"),
        ("pointmaze-umaze", "a.npz", "0", "expected at least 1"),
    ],
)
def test_mistakes(tmp_path, capsys, name, out, steps, words):
    assert main(["data", "make", name, "--out", str(tmp_path / out), "--steps", steps]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_recipe():
    with pytest.raises(OffroadError, match="maze data set"):
        recipes.make("kitchen", 10)
