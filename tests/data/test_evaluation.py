"""Off-policy estimates against exact sums over every path of a tiny problem, and against what users get wrong."""

import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offroad.data import doctor
from offroad.data.dataset import Dataset
from offroad.data.evaluation import behaviour_value, doubly_robust, effective_sample_size, importance_sampling
from offroad.data.readers import load
from offroad.errors import OffroadError

BEHAVIOUR, TARGET = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
REWARD = np.array([[1.0, 0.0, 2.0], [0.5, 3.0, -1.0]])  # by step and action
GAMMA = 0.9
TRUTH = TARGET @ REWARD[0] + GAMMA * TARGET @ REWARD[1]


def episodes(actions: np.ndarray, **columns) -> Dataset:
    """Two steps each; the observation is the step."""
    n = len(actions)
    flat = actions.reshape(-1)
    step = np.tile([0, 1], n)
    return Dataset(
        observations=step,
        actions=flat,
        rewards=REWARD[step, flat],
        terminated=step == 1,
        truncated=np.zeros(2 * n, bool),
        **({"propensities": BEHAVIOUR[flat]} | columns),
    )


def every_path() -> Dataset:
    """Each path as often as the behaviour takes it: 100 episodes in all, so that expectations are exact sums."""
    paths = [
        [pair] * round(100 * BEHAVIOUR[pair[0]] * BEHAVIOUR[pair[1]]) for pair in itertools.product(range(3), repeat=2)
    ]
    return episodes(np.concatenate([np.array(p) for p in paths]))


ALL = every_path()
CHANCES = TARGET[ALL.actions]


@pytest.mark.parametrize("per_decision", [False, True])
@pytest.mark.parametrize("self_normalised", [False, True])
def test_importance_sampling_is_exact_over_all_paths(per_decision, self_normalised):
    found = importance_sampling(
        ALL, CHANCES, per_decision=per_decision, self_normalised=self_normalised, discount=GAMMA
    )
    assert found.value == pytest.approx(TRUTH)  # weights then add up to one, so that normalising changes nothing
    assert found.low < TRUTH < found.high
    ratios = (TARGET / BEHAVIOUR)[ALL.actions].reshape(-1, 2).prod(1)
    assert found.effective == pytest.approx(effective_sample_size(ratios))


def test_the_definitions_on_a_sample_by_hand():
    data = episodes(np.array([[0, 1], [2, 2], [1, 0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = importance_sampling(data, TARGET[data.actions], discount=GAMMA)
        normal = importance_sampling(data, TARGET[data.actions], discount=GAMMA, self_normalised=True)
        decided = importance_sampling(data, TARGET[data.actions], discount=GAMMA, per_decision=True)
    ratio = (TARGET / BEHAVIOUR)[data.actions].reshape(3, 2)
    reward = data.rewards.reshape(3, 2) * [1, GAMMA]
    whole = ratio.prod(1)
    assert sampled.value == pytest.approx((whole * reward.sum(1)).mean())
    assert normal.value == pytest.approx((whole * reward.sum(1)).sum() / whole.sum())
    assert decided.value == pytest.approx((np.cumprod(ratio, 1) * reward).sum(1).mean())


@pytest.mark.parametrize("self_normalised", [False, True])
def test_doubly_robust_is_right_if_either_half_is(self_normalised):
    def estimate(q, chances):
        v = chances_of(chances) @ q.T
        step = ALL.observations
        return doubly_robust(
            ALL, TARGET[ALL.actions], q[step, ALL.actions], v[step], discount=GAMMA, self_normalised=self_normalised
        )

    def chances_of(chances):
        return chances

    right = REWARD + np.array([[GAMMA * TARGET @ REWARD[1]], [0.0]])
    assert estimate(right, TARGET).value == pytest.approx(TRUTH)
    wrong = np.random.default_rng(0).normal(size=(2, 3))
    assert estimate(wrong, TARGET).value == pytest.approx(TRUTH)  # the propensities are right
    # A right model saves wrong propensities, and leaves no variance.
    lying = replace(ALL, propensities=np.full(len(ALL), 0.9))
    found = doubly_robust(
        lying,
        TARGET[ALL.actions],
        right[ALL.observations, ALL.actions],
        (right @ TARGET)[ALL.observations],
        discount=GAMMA,
    )
    assert found.value == pytest.approx(TRUTH)
    assert found.high - found.low == pytest.approx(0, abs=1e-6)
    assert importance_sampling(lying, TARGET[ALL.actions], discount=GAMMA).value != pytest.approx(TRUTH, abs=0.1)


def test_the_behaviour_judged_by_its_own_log_is_its_mean_return():
    own = importance_sampling(ALL, BEHAVIOUR[ALL.actions], discount=GAMMA)
    plain = behaviour_value(ALL, GAMMA)
    assert own.value == pytest.approx(plain.value) == pytest.approx(ALL.returns(GAMMA).mean())
    assert own.effective == pytest.approx(100) == plain.effective
    half = 1.96 * ALL.returns(GAMMA).std() / 10
    assert plain.high - plain.value == pytest.approx(half, rel=0.2)


@pytest.mark.filterwarnings("ignore:the weights of")
def test_intervals_cover_as_often_as_they_say():
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        data = episodes(rng.choice(3, (100, 2), p=BEHAVIOUR))
        found = importance_sampling(data, TARGET[data.actions], per_decision=True, self_normalised=True, discount=GAMMA)
        held += found.low <= TRUTH <= found.high
    assert held >= 51  # of 60; 57 expected, the bootstrap of skewed weights covers a little less


def test_episodes_of_different_lengths_count_with_the_weight_that_they_ended_with():
    data = Dataset(
        observations=np.zeros(3),
        actions=np.array([0, 1, 1]),
        rewards=np.array([1.0, 2.0, 4.0]),
        terminated=np.array([True, False, True]),
        truncated=np.zeros(3, bool),
        propensities=np.full(3, 0.5),
    )
    chances = np.array([0.25, 0.5, 0.25])
    with pytest.warns(UserWarning, match="worth 2.0"):
        found = importance_sampling(data, chances, per_decision=True, self_normalised=True)
    assert found.value == pytest.approx((0.5 * 1 + 1 * 2) / 1.5 + 0.5 * 4 / (0.5 + 0.5))


def test_what_users_get_wrong_is_told():
    with pytest.raises(OffroadError, match="no propensities"):
        importance_sampling(replace(ALL, propensities=None), CHANCES)
    zero = np.array(ALL.propensities)
    zero[7] = 0
    with pytest.raises(OffroadError, match="first 0 at row 7"):
        importance_sampling(replace(ALL, propensities=zero), CHANCES)
    with pytest.raises(OffroadError, match=r"shape \(3,\)"):
        importance_sampling(ALL, CHANCES[:3])
    with pytest.raises(OffroadError, match="NaN"):
        doubly_robust(ALL, CHANCES, CHANCES * np.nan, CHANCES)
    with pytest.raises(OffroadError, match="negative"):
        importance_sampling(ALL, -CHANCES)
    with pytest.raises(OffroadError, match="never chooses"):
        importance_sampling(ALL, np.zeros(len(ALL)))
    with pytest.raises(OffroadError, match="confidence"):
        behaviour_value(ALL, confidence=95)
    with pytest.warns(UserWarning, match="handful"):
        importance_sampling(ALL, (ALL.actions == 2).astype(float))


# --- real data that the repository holds

DOOR = Path(__file__).parent / "adroit_door" / "door_human_excerpt.npz"


def test_the_doctor_reads_the_door_demonstrations_and_the_environment_has_their_spaces():
    gymnasium_robotics = pytest.importorskip("gymnasium_robotics")
    import gymnasium as gym

    from offroad.data.spaces import Spaces

    gym.register_envs(gymnasium_robotics)
    dataset = load(DOOR, ends="truncated")
    env = gym.make("AdroitHandDoor-v1")
    told = doctor.examine(dataset, Spaces(env.observation_space, env.action_space))
    env.close()
    assert dataset.observations.shape == (900, 39)
    assert dataset.actions.shape == (900, 28)
    assert told.facts["episodes"]["number"] == 3
    assert any("clip them" in line for line in told.defects)


@pytest.mark.parametrize(("name", "clicks"), [("random", 38), ("thompson", 42)])
def test_the_open_bandit_sample_is_whole(name, clicks):
    import offroad.data.evaluation as evaluation

    log = load(Path(evaluation.__file__).parent / "samples" / "open_bandit" / f"{name}.npz")
    assert len(log) == len(log.ends) == 10_000
    assert log.rewards.sum() == clicks
    assert set(np.unique(log.observations)) == {1, 2, 3}
    assert log.actions.max() == 79
    assert log.propensities is not None
    if name == "random":
        np.testing.assert_allclose(log.propensities, 1 / 80, rtol=1e-6)
