"""Data sets in memory: two episodes of three and two steps, whose every number can be told by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents import BC, BCConfig
from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError

F, T = False, True


def small(**changes):
    """Observations 0 1 2 (3) and 10 11 (12); the first episode is cut off, the second terminates."""
    columns = {
        "observations": np.array([0, 1, 2, 10, 11], np.float32)[:, None],
        "actions": np.array([[0.0], [0.1], [0.2], [0.3], [0.4]]),
        "rewards": np.array([1.0, 2, 4, 8, 16]),
        "terminated": np.array([F, F, F, F, T]),
        "truncated": np.array([F, F, T, F, F]),
        "final_observations": np.array([[3], [12]], np.float32),
        "info": {"row": np.arange(5)},
    }
    return Dataset(**{**columns, **changes})


def test_every_row_is_followed_by_what_came_next():
    batch = small().transitions(np.array([[0, 2], [3, 4]]))
    np.testing.assert_array_equal(batch.observation[..., 0], [[0, 2], [10, 11]])
    np.testing.assert_array_equal(batch.next_observation[..., 0], [[1, 3], [11, 12]])
    np.testing.assert_array_equal(batch.reward, [[1, 4], [8, 16]])
    np.testing.assert_array_equal(batch.truncated, [[F, T], [F, F]])
    np.testing.assert_array_equal(batch.terminated, [[F, F], [F, T]])
    assert batch.action.dtype == batch.reward.dtype == np.float32  # what JAX computes with


def test_next_actions_are_those_of_the_next_row_within_an_episode(tmp_path):
    batch = small().transitions(np.array([[0, 1, 2], [3, 4, 0]]))
    np.testing.assert_array_equal(batch.next_action[..., 0], np.float32([[0.1, 0.2, 0.2], [0.4, 0.4, 0.1]]))
    both = small(actions={"arm": np.arange(5), "hand": np.arange(5) * 2.0}).sample(np.random.default_rng(0), (2, 50))
    last = both.terminated | both.truncated
    np.testing.assert_array_equal(both.next_action["arm"], both.action["arm"] + ~last)
    np.testing.assert_array_equal(both.next_action["hand"], 2 * both.next_action["arm"])
    # Also where actions are mapped from the disk, of which only the rows asked for are read.
    np.save(tmp_path / "actions.npy", small().actions)
    mapped = small(actions=np.load(tmp_path / "actions.npy", mmap_mode="r"))
    drawn = (data.sample(np.random.default_rng(0), 20).next_action for data in (small(), mapped))
    np.testing.assert_array_equal(*drawn)


def test_sampling_draws_all_rows_alike_with_any_shape():
    drawn = small().sample(np.random.default_rng(0), (10, 500))
    assert drawn.observation.shape == (10, 500, 1)
    numbers, counts = np.unique(drawn.observation, return_counts=True)
    np.testing.assert_array_equal(numbers, [0, 1, 2, 10, 11])
    np.testing.assert_allclose(counts / 5000, 0.2, atol=0.02)
    again = small().sample(np.random.default_rng(0), (10, 500))
    np.testing.assert_array_equal(drawn.next_observation, again.next_observation)


def test_without_final_observations_a_cut_off_row_is_never_sampled():
    data = small(final_observations=None)
    np.testing.assert_array_equal(data.rows, [0, 1, 3, 4])
    drawn = data.sample(np.random.default_rng(0), 200)
    assert set(drawn.observation[:, 0].tolist()) == {0, 1, 10, 11}
    np.testing.assert_array_equal(drawn.next_observation[drawn.terminated], 11)  # its own: it is not used
    assert not drawn.truncated.any()
    cut = small(final_observations=None, terminated=np.zeros(5, bool), truncated=np.ones(5, bool))
    with pytest.raises(OffroadError, match="no row of the data set can be sampled"):
        cut.sample(np.random.default_rng(0), 1)


def test_dict_observations_stay_dicts():
    a, b = np.arange(5)[:, None].astype(np.uint8), np.arange(10, dtype=np.float32).reshape(5, 2)
    data = small(observations={"a": a, "b": b}, final_observations={"a": a[:2] + 50, "b": b[:2] + 50})
    after = data.transitions(np.array([2, 3])).next_observation
    np.testing.assert_array_equal(after["a"], [[50], [4]])
    np.testing.assert_array_equal(after["b"], [[50, 51], [8, 9]])
    assert after["a"].dtype == np.uint8
    assert {"observations/a", "final_observations/b", "info/row"} <= data.arrays().keys()


def test_episodes_and_returns():
    data = small()
    np.testing.assert_array_equal(data.starts, [0, 3])
    np.testing.assert_array_equal(data.lengths, [3, 2])
    assert [len(episode.reward) for episode in data.episodes()] == [3, 2]
    np.testing.assert_array_equal(data.returns(), [7, 24])
    np.testing.assert_allclose(data.returns(0.5), [1 + 1 + 1, 8 + 8])


def test_the_best_episodes():
    best = small().top(0.5)
    np.testing.assert_array_equal(best.rewards, [8, 16])
    np.testing.assert_array_equal(best.final_observations, [[12]])
    np.testing.assert_array_equal(best.info["row"], [3, 4])
    np.testing.assert_array_equal(small().top(0.01).rewards, [8, 16])  # at least one
    swapped = small().take(np.array([1, 0]))
    np.testing.assert_array_equal(swapped.transitions(np.arange(5)).next_observation[:, 0], [11, 12, 1, 2, 3])
    for fraction in (0, 1.5):
        with pytest.raises(OffroadError, match="fraction of best episodes"):
            small().top(fraction)


def test_a_slice_of_neighbours_copies_nothing():
    data = small()
    part = data.take(slice(1, 2))
    assert np.shares_memory(part.observations, data.observations)
    np.testing.assert_array_equal(part.transitions(np.arange(2)).next_observation[:, 0], [11, 12])
    assert np.shares_memory(replace(data, rewards=data.rewards - 1).observations, data.observations)


def test_transitions_in_a_row_become_a_data_set_and_back():
    whole = small().transitions(np.arange(5))
    again = Dataset.of_transitions(whole).transitions(np.arange(5))
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    with pytest.raises(OffroadError, match="the next observation of transition 0 is not"):
        Dataset.of_transitions(jax.tree.map(lambda x: x[[0, 2, 3, 4]], whole))


def test_an_agent_learns_from_it():
    spaces = Spaces(gym_spaces.Box(-1, 20, (1,)), gym_spaces.Box(-1, 1, (1,)))
    data = small()
    data.check(spaces)
    agent = BC.create(spaces, BCConfig(hidden=(8,)), jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, data.sample(np.random.default_rng(0), 8))
    _, metrics = jax.jit(type(agent).update)(agent, batch, jax.random.key(1))
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 2, 3, 4]), "go from 0 to 4; expected whole numbers from 0 to 3"),
        (np.array([0, 1, 2, 3, -1]), "go from -1 to 3"),
        (np.array([0.0, 1, 2, 3, 0]), "are of type float32; expected whole numbers"),
    ],
)
def test_choices_that_the_environment_does_not_have(actions, message):
    small(actions=np.array([0, 1, 2, 3, 0])).check_numbers(gym_spaces.Discrete(4))
    with pytest.raises(OffroadError, match=message):
        small(actions=actions).check_numbers(gym_spaces.Discrete(4))


def test_actions_beyond_the_bounds_are_told_with_the_row():
    box = gym_spaces.Box(np.float32([-1, -np.inf]), np.float32([0.25, 5]))
    rounded = np.array([[0.25 + 1e-6, 5], [-1 - 1e-6, 1], [0, -9], [0, 0], [0, 0]])
    small(actions=rounded).check_numbers(box)
    rounded[3, 1] = 5.5
    with pytest.raises(OffroadError, match=r"row 3 of 'actions' holds 5\.5, beyond the bounds -inf to 5; clip them"):
        small(actions=rounded).check_numbers(box)
    rounded[1, 0] = -1.01
    with pytest.raises(OffroadError, match=r"row 1 of 'actions' holds -1\.01, beyond the bounds -1 to 0\.25"):
        small(actions=rounded).check_numbers(box)


def test_one_real_number_a_row_is_a_vector_of_length_one():
    whole = small()
    columns = {name: getattr(whole, name)[:, 0] for name in ("observations", "actions", "final_observations")}
    flat, box = small(**columns), gym_spaces.Box(-1, 20, (1,))
    flat.check(Spaces(box, box))
    np.testing.assert_array_equal(flat.transitions(np.arange(5)).next_observation, [[1], [2], [3], [11], [12]])
    with pytest.raises(OffroadError, match="are of type float32; expected whole numbers from 0 to 3"):
        flat.check(Spaces(box, gym_spaces.Discrete(4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(bad):
    small().check_numbers()
    with pytest.raises(OffroadError, match="row 3 of 'rewards' is NaN or infinite"):
        small(rewards=np.array([1.0, 2, 4, bad, 16])).check_numbers()
    with pytest.raises(OffroadError, match="row 1 of 'final_observations'"):
        small(final_observations=np.array([[3], [bad]], np.float32)).check_numbers()
    small(info={"row": np.full(5, bad)}).check_numbers()


def test_a_data_set_of_another_environment():
    box = gym_spaces.Box(-1, 1, (1,))
    with pytest.raises(OffroadError, match=r"'actions' shape \(1,\) per row, the environment has shape \(2,\)"):
        small().check(Spaces(box, gym_spaces.Box(-1, 1, (2,))))
    with pytest.raises(OffroadError, match=r"'observations' shape \(1,\) per row, the environment has nothing"):
        small().check(Spaces(gym_spaces.Dict(a=box), box))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(0)}, "is empty"),
        ({"actions": np.zeros((4, 1))}, r"'actions' has shape \(4, 1\)"),
        ({"final_observations": np.zeros((3, 1))}, "expected one row for each episode: 2"),
        ({"final_observations": np.zeros((2, 4))}, r"final observations have shapes"),
        ({"terminated": np.zeros(5), "final_observations": None}, "ends no episode"),
        ({"terminated": np.arange(5)}, "'terminated' contains 2; expected flags"),
        ({"propensities": np.ones(3)}, r"'propensities' has shape \(3,\)"),
    ],
)
def test_columns_that_do_not_fit(changes, message):
    with pytest.raises(OffroadError, match=message):
        small(**changes)
