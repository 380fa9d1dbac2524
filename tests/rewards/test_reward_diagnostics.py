from dataclasses import replace

import jax
import numpy as np
import pytest
from gymnasium import spaces
from worlds import KEY, VECTOR

from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.rewards import ICM, Counts, CountsConfig, ICMConfig, Scaling
from offroad.rewards.diagnostics import bonus_map, feature_rank, inverse_skill, rank_on_episodes


def test_the_rank_of_features_counts_their_directions():
    rng = np.random.default_rng(0)
    line = rng.normal(size=(500, 1)) * np.ones(8)
    round_ = rng.normal(size=(20000, 8))
    np.testing.assert_allclose(feature_rank(line + 7), 1, rtol=1e-6)
    np.testing.assert_allclose(feature_rank(round_), 8, rtol=1e-2)
    assert np.isnan(feature_rank(np.ones((5, 3))))


def test_a_model_that_sees_nothing_has_the_skill_of_chance():
    model = ICM.create(VECTOR, ICMConfig(hidden=(8,), size=4), KEY).model.inverse
    model = jax.tree.map(np.zeros_like, model)
    action = np.array([0, 0, 1, 0])
    skill = inverse_skill(model, np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32), action)
    assert skill["accuracy"] == skill["chance"] == 0.75
    np.testing.assert_allclose(skill["loss"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(skill["entropy"], -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_a_map_shows_where_the_bonus_is_paid():
    positions = np.array([[0.5, 0.5], [0.6, 0.4], [2.5, 1.5], [9.0, 9.0]])
    mean, visits = bonus_map(positions, np.array([1.0, 3.0, 5.0, 7.0]), (0, 0), (3, 2), 1.0)
    np.testing.assert_array_equal(visits, [[2, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(mean, [[2, np.nan, np.nan], [np.nan, np.nan, 5]])
    with pytest.raises(OffroadError, match="low < high"):
        bonus_map(positions, np.ones(4), (0, 0), (0, 2), 1.0)


def test_bonuses_are_ranked_by_what_they_pay_recorded_policies():
    """Within an episode, counts pay a traveller more than one who goes to and fro."""
    space = Spaces(spaces.Discrete(10), spaces.Discrete(2), 4)
    episodic = Counts.create(space, CountsConfig(episodic=True, scaling=Scaling(False)), KEY)

    def episode(cells):
        cells, none = np.array(cells), np.zeros(len(cells) - 1, bool)
        return Transition(cells[:-1], none.astype(int), none.astype(np.float32), cells[1:], none, none)

    fro, far = [0, 1, 0, 1, 0], [0, 1, 2, 3, 4]
    episodes = {"to and fro": [episode(fro), episode(fro[:3])], "traveller": [episode(far)]}
    table = rank_on_episodes({"episodic": episodic, "twice": 2 * episodic}, episodes)
    half, third = 1 / np.sqrt(2), 1 / np.sqrt(3)
    returns = [1 + half + half + third, 1 + half, 4]
    expected = (4 - np.mean(returns[:2])) / np.std(returns)
    assert table["episodic"]["to and fro"] == table["twice"]["to and fro"] == 0
    np.testing.assert_allclose(table["episodic"]["traveller"], expected, rtol=1e-5)
    np.testing.assert_allclose(table["twice"]["traveller"], expected, rtol=1e-5)
    with pytest.raises(OffroadError, match="no episodes of 'nobody'"):
        rank_on_episodes({"episodic": episodic}, {"nobody": []})


def test_the_ranking_holds_whatever_the_sign_of_the_returns():
    """A policy that is paid more stands higher, be all returns negative or the first one 0; equal ones stand at 0."""
    one = Spaces(spaces.Discrete(10), spaces.Discrete(2), 1)
    reward = Counts.create(one, CountsConfig(scaling=Scaling(False)), KEY)
    reward = replace(reward, table=reward.table.at[0].set(3))  # pays 1/2 in cell 0, 1 elsewhere

    def steps(cell):
        none = np.zeros(4, bool)
        return Transition(np.full(4, 5), none.astype(int), none.astype(np.float32), np.full(4, cell), none, none)

    episodes = {"known": [steps(0)], "new": [steps(1)], "also new": [steps(2)]}
    deviation = np.std([2, 4, 4])
    signs = {"paid": 1 * reward, "charged": -1 * reward, "nothing": 0 * reward}
    table = rank_on_episodes(signs, episodes)
    for name, sign in (("paid", 1), ("charged", -1), ("nothing", 0)):
        expected = sign * 2 / deviation
        np.testing.assert_allclose(list(table[name].values()), [0, expected, expected], rtol=1e-6)
