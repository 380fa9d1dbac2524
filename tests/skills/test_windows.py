"""Windows of data sets of random episodes, of which every number tells its episode and step."""

import numpy as np
import pytest

from offroad.data.dataset import Dataset
from offroad.errors import OffroadError
from offroad.skills import Windows


def data(rng, finals=True, episodes=8):
    """Observations are 100 episode + step."""
    lengths = rng.integers(1, 12, episodes)
    ends = np.cumsum(lengths) - 1
    step = np.concatenate([np.arange(n) for n in lengths])
    seen = 100 * np.repeat(np.arange(episodes), lengths) + step
    terminated, truncated = np.zeros((2, len(step)), bool)
    dead = rng.random(episodes) < 0.5
    terminated[ends[dead]], truncated[ends[~dead]] = True, True
    return Dataset(
        observations=seen[:, None].astype(np.float32),
        actions=seen[:, None] + np.float32(0.5),
        rewards=rng.standard_normal(len(step)),
        terminated=terminated,
        truncated=truncated,
        final_observations=(seen[ends][:, None] + np.float32(1)) if finals else None,
    )


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_all_stretches_of_one_episode(seed):
    rng = np.random.default_rng(seed)
    dataset, length = data(rng, finals=seed % 2 == 0), int(rng.integers(1, 6))
    windows = Windows(dataset, length)
    expected = []
    for start, end in zip(dataset.starts, dataset.ends):
        for row in range(start, end + 1):
            whole = row + length - 1 <= end if dataset.final_observations is not None else row + length - 1 < end
            if whole or dataset.terminated[end]:
                expected.append(row)
    np.testing.assert_array_equal(windows.rows, expected)

    drawn = windows.sample(rng, (3, 50))
    assert drawn.observation.shape == (3, 50, length, 1)
    assert drawn.action.shape == (3, 50, length, 1)
    first, age = drawn.observation[..., :1, :], np.arange(length)[:, None]
    age = np.minimum(age, drawn.valid.sum(-1)[..., None, None] - 1)  # after the end its step is repeated
    np.testing.assert_array_equal(drawn.observation, first + age)
    np.testing.assert_array_equal(drawn.action, first + age + 0.5)
    assert drawn.valid[..., 0].all()
    assert (np.diff(drawn.valid.astype(int), axis=-1) <= 0).all()  # once over, over
    # Those that are short end in a terminal.
    flat = windows.at(windows.rows)
    short = ~flat.valid.all(-1)
    assert dataset.terminated[windows.last(windows.rows)[short]].all()
    assert (flat.valid.sum(-1) == windows.last(windows.rows) - windows.rows + 1).all()


@pytest.mark.parametrize("seed", range(10))
def test_chains_go_on_where_the_window_before_stopped(seed):
    rng = np.random.default_rng(seed)
    dataset = data(rng, finals=seed % 2 == 0)
    windows = Windows(dataset, 3)
    rows, ends = windows.chains()
    np.testing.assert_array_equal(np.sort(rows), windows.rows)
    last = windows.last(rows)
    np.testing.assert_array_equal(rows[1:][~ends[:-1]], last[:-1][~ends[:-1]] + 1)
    assert ends[dataset.terminated[last]].all()
    goes_on = np.isin(last + 1, rows) & ~np.isin(last, dataset.ends)
    np.testing.assert_array_equal(ends, ~goes_on)


def of(terminated, truncated, rewards=None, actions=None):
    """Observations are zeros; the arguments are flags and numbers, one a row."""
    n, ends = len(terminated), int(np.sum(terminated) + np.sum(truncated))
    actions = np.zeros((n, 1)) if actions is None else actions
    rewards = np.zeros(n) if rewards is None else np.array(rewards)
    return Dataset(np.zeros((n, 1)), actions, rewards, np.array(terminated), np.array(truncated), np.zeros((ends, 1)))


def test_rewards_are_summed_with_their_discount():
    dataset = of([0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], rewards=[1, 2, 4, 8, 16, 32])
    windows = Windows(dataset, 2)
    np.testing.assert_array_equal(windows.rows, [0, 2, 3, 4, 5])
    np.testing.assert_allclose(windows.returns(windows.rows, 0.5), [2, 8, 16, 32, 32])
    assert len(windows) == 5


def test_bad_data_are_told():
    dataset = data(np.random.default_rng(0))
    with pytest.raises(OffroadError, match="expected at least 1 step"):
        Windows(dataset, 0)
    with pytest.raises(OffroadError, match="no episode of the data set has a window of 3 steps, the longest has 2"):
        Windows(of([0, 0, 0], [0, 1, 1]), 3)
    with pytest.raises(OffroadError, match="use Box actions"):
        Windows(of([0, 0, 0], [0, 0, 1], actions=np.zeros(3, int)), 1)
