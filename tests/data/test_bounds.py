import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.data.bounds import action_bounds, guessed_spaces
from offroad.data.dataset import Dataset
from offroad.errors import OffroadError


def of(observations, actions):
    n = len(actions if not isinstance(actions, dict) else observations)
    return Dataset(observations, actions, np.zeros(n), np.arange(n) == n - 1, np.zeros(n, bool))


def test_actions_mostly_between_minus_one_and_one_are_bounded_so():
    actions = np.linspace(-1, 1.3, 100)[:, None]
    assert action_bounds(actions[:95])[:2] == (-1, 1)
    box = guessed_spaces(of(np.zeros((80, 2)), actions[:80])).action
    assert (box.low.tolist(), box.high.tolist(), box.shape) == ([-1], [1], (1,))


def test_what_is_not_finite_bounds_nothing():
    for wrong in (np.nan, np.inf):
        assert action_bounds(np.array([[wrong], [40.0], [60.0]]))[:2] == (
            [pytest.approx(39.98)],
            [pytest.approx(60.02)],
        )
        assert action_bounds(np.full((3, 1), wrong))[:2] == (-1, 1)


def test_each_column_of_other_actions_has_its_own_range():
    throttle, steering = np.linspace(0, 100, 50), np.linspace(-0.3, 0.2, 50)
    actions = np.stack([throttle, steering, np.full(50, 7)], 1)
    box = guessed_spaces(of(np.zeros((50, 2)), actions)).action
    assert all(box.contains(np.float32(row)) for row in actions)
    assert (box.high - box.low).tolist() == pytest.approx([100.2, 0.501, 2], rel=1e-3)


def test_observations_keep_their_kind():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    rows = {"speed": np.zeros((9, 2)), "gear": np.arange(9) % 5, "camera": image}
    found = guessed_spaces(of(rows, np.arange(9) % 3))
    assert found.observation["speed"] == gym_spaces.Box(-np.inf, np.inf, (2,))
    assert found.observation["gear"] == gym_spaces.Discrete(5)
    assert found.observation["camera"].dtype == np.uint8
    assert found.action == gym_spaces.Discrete(3)
    assert guessed_spaces(of(np.zeros((4, 1)), np.array([-1, 0, 1, 1]))).action == gym_spaces.Discrete(3, start=-1)
    of(rows, np.arange(9) % 3).check(found)


def test_a_dict_of_actions_is_refused():
    with pytest.raises(OffroadError, match="a dict of arm, hand"):
        guessed_spaces(of(np.zeros((3, 1)), {"arm": np.zeros((3, 1)), "hand": np.zeros((3, 1))}))
