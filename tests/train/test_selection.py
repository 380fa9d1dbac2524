import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from offroad.agents.fqe import FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.evaluation import Estimate
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.selection import (
    absolute_error,
    choose,
    evaluate_policies,
    fitted,
    rank_correlation,
    recommend,
    regret_at,
)


def estimates(**bounds: tuple[float, float]) -> dict[str, Estimate]:
    return {name: Estimate((low + high) / 2, low, high, 100.0) for name, (low, high) in bounds.items()}


BEHAVIOUR = Estimate(1.0, 0.9, 1.1, 100.0)


class Table(eqx.Module):
    action: jax.Array

    def act(self, observation, key=None, memory=()):
        return self.action[observation], memory


class Always(eqx.Module):
    action: jax.Array

    def act(self, observation, key=None, memory=()):
        return jnp.full(observation.shape, self.action), memory


def test_policies_are_evaluated_side_by_side_as_alone():
    """One step, reward 1 for the action that equals the state; three policies of two kinds, in mixed order."""
    rng, ended = np.random.default_rng(0), np.ones(500, bool)
    state, action = rng.integers(2, size=(2, 500))
    data = Dataset(state, action, (state == action).astype(np.float32), ended, ~ended)
    spaces = Spaces(gym_spaces.Discrete(2), gym_spaces.Discrete(2))
    policies = {"worst": Table(jnp.array([1, 0])), "zero": Always(jnp.array(0)), "best": Table(jnp.array([0, 1]))}
    config = FQEConfig(hidden=(), learning_rate=0.05, batch=32, critics=2)
    learners = fitted(policies, data, config, 200, spaces=spaces)
    assert list(learners) == list(policies)
    for name, learner in learners.items():
        alone = fitted({name: policies[name]}, data, config, 200, spaces=spaces)[name]
        np.testing.assert_allclose(learner.value(jnp.arange(2)), alone.value(jnp.arange(2)), atol=1e-5)
    found = evaluate_policies(policies, data, config, 200, spaces=spaces)
    assert [round(e.value, 1) for e in found.values()] == [0.0, pytest.approx((state == 0).mean(), abs=0.06), 1.0]


def test_the_surest_policy_is_recommended_not_the_most_promising():
    advice = recommend(estimates(bold=(0.0, 9.0), sure=(1.2, 2.0), poor=(0.1, 0.3)), BEHAVIOUR)
    assert advice.policy == "sure"
    assert advice.ranking == ("bold", "sure", "poor")


def test_nothing_is_recommended_below_the_behaviour():
    advice = recommend(estimates(bold=(0.99, 9.0)), BEHAVIOUR)
    assert advice.policy is None
    assert "no policy is recommended" in str(advice)
    assert recommend(estimates(bold=(1.0, 9.0)), BEHAVIOUR).policy == "bold"
    with pytest.raises(OffroadError, match="no policy"):
        recommend({}, BEHAVIOUR)
    with pytest.raises(OffroadError, match="not finite"):
        recommend(estimates(broken=(np.nan, np.nan)), BEHAVIOUR)
    with pytest.raises(OffroadError, match="the behaviour's value is not finite"):
        recommend(estimates(bold=(0.0, 9.0)), Estimate(np.nan, np.nan, np.nan, 100.0))


def test_episodes_are_counted_and_go_to_the_best():
    rng, played = np.random.default_rng(0), []
    means = {"a": 0.0, "b": 1.0, "c": 0.5, "d": -1.0}

    def run(name: str) -> float:
        played.append(name)
        return means[name] + 0.3 * rng.standard_normal()

    choice = choose(list(means), run, 200, exploration=0.5)
    assert choice.policy == "b"
    assert len(played) == 200 == sum(choice.episodes.values())
    assert choice.episodes == {name: played.count(name) for name in means}
    assert choice.episodes["b"] > 100 > choice.episodes["d"]
    assert choice.episodes["c"] >= choice.episodes["d"]


def test_choosing_does_not_depend_on_the_scale_of_returns():
    def chosen(scale: float) -> dict[str, int]:
        rng = np.random.default_rng(1)
        return choose(["a", "b"], lambda n: scale * ((n == "b") + rng.standard_normal()), 50).episodes

    assert chosen(1.0) == chosen(1024.0)


def test_what_users_get_wrong_is_told():
    with pytest.raises(OffroadError, match="cannot try"):
        choose(["a", "b"], lambda _: 0.0, 1)
    with pytest.raises(OffroadError, match="named once"):
        choose(["a", "a"], lambda _: 0.0, 5)
    with pytest.raises(OffroadError, match="one number for each"):
        rank_correlation([1.0], [1.0, 2.0])


def test_the_metrics_of_dope():
    true = [1.0, 2.0, 3.0, 4.0]
    assert rank_correlation([10.0, 20.0, 30.0, 40.0], true) == pytest.approx(1)
    assert rank_correlation([4.0, 3.0, 2.0, 1.0], true) == pytest.approx(-1)
    assert rank_correlation([1.0, 3.0, 2.0, 4.0], true) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1.0, 1.0, 2.0, 2.0], true) == pytest.approx(2 / np.sqrt(5))  # ties share their rank
    assert np.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))
    assert regret_at(1, [9.0, 8.0, 7.0, 0.0], true) == 3
    assert regret_at(3, [9.0, 8.0, 7.0, 0.0], true) == 1
    assert absolute_error([1.5, 1.5, 3.0, 4.0], true) == pytest.approx(0.25)
    assert jnp.isfinite(regret_at(1, true, true))
