"""Scores over few seeds: the interquartile mean and bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

A handful of runs makes means fragile and medians noisy; the interquartile mean (IQM) drops the best and worst quarter
and averages the rest. Intervals are percentile bootstraps that resample the seeds, each task being its own stratum,
from a fixed random stream: the same scores always print the same interval.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

from offroad.errors import OffroadError

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A statistic with the ends of its bootstrap interval, and the number of seeds that it rests on."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """`3.38 [3.35, 3.41]`: as many digits as the interval deserves."""
        digits = _digits(self.value, self.low, self.high)
        value, low, high = (format(x + 0.0, f",.{digits}f") for x in self[:3])
        return value if low == high else f"{value} [{low}, {high}]"


def iqm(scores: Float[ndarray, "..."] | Integer[ndarray, "..."] | list[float]) -> float:
    """The mean of the middle half of all scores, whatever their shape.

    Exact where the quartiles cut through a score: that score then counts by the part of it that lies inside, so that
    five scores weigh 0, 0.75, 1, 0.75, 0 (over 2.5) instead of being rounded to the middle three.
    """
    flat = np.asarray(scores, float).ravel()
    if flat.size == 0:
        raise OffroadError("the interquartile mean of no scores is undefined; expected at least one seed")
    return float(_iqm(flat))


def estimate(scores: Float[ndarray, "seeds *tasks"] | list[float], confidence: float = 0.95) -> Estimate:
    """The IQM over seeds (and tasks) with its interval."""
    array = np.asarray(scores, float)
    value = iqm(array)
    flat = array.reshape(len(array), -1)
    draws = _iqm(_resample(flat).reshape(RESAMPLES, -1))
    return Estimate(value, *_percentiles(draws, confidence), len(array))


def proportion(share: float | int, trials: int) -> Estimate:
    """A share of successes with Wilson's 95 % interval, as if all trials were independent."""
    z = 1.96
    centre, scale = share + z**2 / (2 * trials), 1 + z**2 / trials
    half = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Estimate(float(share), float((centre - half) / scale), float((centre + half) / scale), 1)


def curve(
    scores: Float[ndarray, "steps seeds"], confidence: float = 0.95
) -> tuple[Float[ndarray, " steps"], Float[ndarray, " steps"], Float[ndarray, " steps"]]:
    """IQM, lower and upper end of the interval at each step; whole curves are resampled, so bands are smooth."""
    seeds = scores.shape[1]
    rows = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    ends = np.array([_percentiles(_iqm(step[rows]), confidence) for step in scores]).reshape(-1, 2)
    return _iqm(scores), ends[:, 0], ends[:, 1]


def probability_of_improvement(x: list[float], y: list[float], confidence: float = 0.95) -> Estimate:
    """The share of seeds on which `x` beats `y`, ties counting half. Paired: `x[i]` and `y[i]` share seed `i`."""
    if len(x) != len(y):
        raise OffroadError(f"paired scores need the same seeds, but got {len(x)} and {len(y)}; run both on one list")
    wins = 0.5 + 0.5 * np.sign(np.subtract(x, y, dtype=float))
    draws = _resample(wins[:, None]).mean((1, 2))
    return Estimate(float(wins.mean()), *_percentiles(draws, confidence), len(wins))


def _iqm(scores: Float[ndarray, "*batch n"]) -> Float[ndarray, "*batch"]:
    n = scores.shape[-1]
    edges = np.arange(n + 1) / n
    weights = np.diff(np.clip(edges, 0.25, 0.75)) * 2
    middle = weights > 0  # an infinite score outside must not become 0 * inf
    return np.asarray(np.sort(scores, -1)[..., middle] @ weights[middle])


def _resample(scores: Float[ndarray, "seeds tasks"]) -> Float[ndarray, "draws seeds tasks"]:
    seeds, tasks = scores.shape
    rows = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds, tasks))
    return scores[rows, np.arange(tasks)]


def _percentiles(draws: Float[ndarray, " draws"], confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    # NaN propagates quietly: a seed that diverged has no interval.
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _digits(value: float, low: float, high: float) -> int:
    """Decimals that show the interval's width to two digits, or three significant digits where there is no width."""
    width = high - low
    shown, digits = (width, 1) if width > 1e-9 * abs(value) else (abs(value), 2)
    return int(np.clip(digits - np.floor(np.log10(shown)), 0, 6)) if shown and np.isfinite(shown) else 0
