import numpy as np
import pytest

from offroad.errors import OffroadError
from offroad.report import statistics


def test_iqm_drops_the_outer_quarters():
    assert statistics.iqm([-1e9, 1.0, 3.0, 1e9]) == 2.0
    assert statistics.iqm(np.array([[8, 1, 2, 3], [4, 5, 6, 7]])) == 4.5
    assert statistics.iqm([7.0]) == 7.0


def test_iqm_cuts_through_scores_at_fractional_quartiles():
    # The quartiles of five scores lie at 1.25 and 3.75: the middle one counts whole, its neighbours three quarters.
    assert statistics.iqm([0.0, 1.0, 5.0, 6.0, 99.0]) == pytest.approx((0.75 * 1 + 5 + 0.75 * 6) / 2.5)
    # Repeating every score four times changes nothing about the distribution, and makes the quartiles whole.
    scores = np.random.default_rng(3).normal(size=7)
    repeated = np.sort(np.repeat(scores, 4))
    assert statistics.iqm(scores) == pytest.approx(repeated[7:21].mean())


def test_iqm_ignores_infinities_outside_the_middle_and_shows_nan():
    assert statistics.iqm([-np.inf, 1.0, 3.0, np.inf]) == 2.0
    assert np.isnan(statistics.iqm([1.0, np.nan]))
    with pytest.raises(OffroadError, match="at least one seed"):
        statistics.iqm([])


def test_estimate_is_deterministic_equivariant_and_blind_to_order():
    scores = np.random.default_rng(0).normal(size=8)
    a, b = statistics.estimate(scores), statistics.estimate(scores)
    assert a == b
    assert a.low < a.value < a.high
    assert a.seeds == 8
    moved = statistics.estimate(3 * scores + 10)
    np.testing.assert_allclose(moved[:3], 3 * np.array(a[:3]) + 10)
    assert statistics.estimate(scores[::-1].copy()).value == pytest.approx(a.value)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = statistics.estimate(rng.normal(size=24))  # the IQM of a standard normal is 0
        hits += found.low <= 0 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_interval_narrows_with_confidence_and_with_seeds():
    rng = np.random.default_rng(1)
    few, many = rng.normal(size=10), rng.normal(size=160)
    wide, narrow = statistics.estimate(few), statistics.estimate(few, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    large = statistics.estimate(many)
    assert large.high - large.low < 0.5 * (wide.high - wide.low)


def test_tasks_are_strata():
    # Two tasks of very different scale, each without any noise over seeds: resampling seeds must not mix tasks.
    found = statistics.estimate(np.tile([0.0, 100.0], (5, 1)))
    assert found.low == found.value == found.high == 50.0


def test_curve_agrees_with_iqm_at_each_step():
    scores = np.random.default_rng(2).normal(size=(4, 6))
    middle, low, high = statistics.curve(scores)
    np.testing.assert_allclose(middle, [statistics.iqm(s) for s in scores])
    assert np.all(low <= middle)
    assert np.all(middle <= high)
    np.testing.assert_array_equal(statistics.curve(scores)[1], low)


def test_probability_of_improvement():
    assert statistics.probability_of_improvement([2.0, 3.0], [1.0, 1.0])[:3] == (1.0, 1.0, 1.0)
    assert statistics.probability_of_improvement([1.0, 1.0], [1.0, 1.0]).value == 0.5
    x, y = list(np.random.default_rng(4).normal(size=(2, 9)))
    forth = statistics.probability_of_improvement(list(x), list(y))
    back = statistics.probability_of_improvement(list(y), list(x))
    assert forth.value + back.value == pytest.approx(1)
    assert forth.low <= forth.value <= forth.high
    with pytest.raises(OffroadError, match="same seeds"):
        statistics.probability_of_improvement([1.0], [1.0, 2.0])


def test_estimate_prints_as_many_digits_as_its_interval_deserves():
    assert str(statistics.Estimate(3.38123, 3.3512, 3.4098, 5)) == "3.381 [3.351, 3.410]"
    assert str(statistics.Estimate(12345.6, 11000.0, 13000.0, 5)) == "12,346 [11,000, 13,000]"
    assert str(statistics.Estimate(0.5, 0.5, 0.5, 5)) == "0.500"
    assert str(statistics.Estimate(0.0, 0.0, 0.0, 5)) == "0"
