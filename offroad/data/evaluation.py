"""What a policy would have earned, from a log whose propensities are known: importance sampling and doubly robust.

No network and no simulator: a log, and how likely the policy in question is to choose what was chosen.

```python
found = importance_sampling(log, probabilities, self_normalised=True)
print(found.value, found.low, found.high, found.effective)
```

All intervals are percentile bootstraps over episodes. Weighted returns are skewed, so that an interval symmetric about
the mean would be wrong; self-normalised estimates are ratios, which the bootstrap handles as it is; and bounds that
hold for any distribution (Hoeffding's, the empirical Bernstein bound) need the largest possible weight and are too wide
to decide anything. The bootstrap in turn knows only weights that were drawn: where the effective sample is small its
intervals are too narrow, which `TOO_FEW` warns about.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from offroad.data.dataset import Dataset
from offroad.errors import OffroadError

DRAWS = 1000
"""Bootstrap resamples."""
TOO_FEW = 20
"""A warning tells when the weights are worth fewer episodes than this."""

Rows = Float[np.ndarray, " steps"]


@dataclass(frozen=True)
class Estimate:
    """A policy's value with the ends of its interval.

    `effective`: how many episodes of the policy itself the weighted log is worth (Kish); the number of episodes for a
    plain mean.
    """

    value: float
    low: float
    high: float
    effective: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def behaviour_value(dataset: Dataset, discount: float | int = 1, confidence: float | int = 0.95) -> Estimate:
    """The mean (discounted) return of the policy that was logged. Needs no propensities."""
    returns = dataset.returns(discount)[:, None]
    return _estimate(returns, np.ones_like(returns), float(len(returns)), confidence)


def importance_sampling(
    dataset: Dataset,
    probabilities: Rows,
    *,
    per_decision: bool = False,
    self_normalised: bool = False,
    discount: float | int = 1,
    confidence: float | int = 0.95,
) -> Estimate:
    """The value of another policy from the log: logged returns, reweighted by how likely that policy makes them.

    **Arguments:** `probabilities` `[steps]`: with which probability (or density) the policy to be judged chooses the
    logged action where it was logged; 0 or 1 for a deterministic one. `per_decision`: weighs every reward by the steps
    up to it only (Precup et al. 2000): less variance, same expectation. `self_normalised`: divides by the sum of the
    weights instead of the number of episodes: a small bias that vanishes with more data, for much less variance.

    What came after an episode that was cut off is not counted. Per decision and self-normalised, an episode's weight
    stays once it has ended, and steps that no logged episode reaches on the policy's way add nothing. Raises
    `OffroadError` where propensities are missing, not positive or do not fit, and where the policy shares no episode
    with the log; warns below `TOO_FEW` effective episodes.
    """
    weights, there = _padded_weights(dataset, probabilities)
    rewards = _padded(dataset, dataset.rewards) * _discounts(there, discount)
    last = weights[:, -1:]
    if per_decision:
        numerators, denominators = weights * rewards, weights
    else:
        numerators, denominators = last * rewards.sum(1, keepdims=True), last
    if not self_normalised:
        denominators = np.ones_like(numerators)
    return _estimate(numerators, denominators, _effective(last[:, 0]), confidence)


def doubly_robust(
    dataset: Dataset,
    probabilities: Rows,
    q_values: Rows,
    values: Rows,
    *,
    self_normalised: bool = False,
    discount: float | int = 1,
    confidence: float | int = 0.95,
) -> Estimate:
    """A model's value, corrected by what was logged (Dudik et al. 2011; Jiang and Li 2016 for episodes).

    Unbiased if either the propensities or the model are right. `self_normalised` is the weighted variant of Thomas and
    Brunskill 2016.

    **Arguments:** `q_values` `[steps]`: the model's value of the logged action, `values` `[steps]`: its mean over the
    policy's own actions there; for rewards of one step, the expected reward. Both in the units of `discount`, which is
    that of the model. Others, and errors, as of `importance_sampling`.
    """
    weights, there = _padded_weights(dataset, probabilities)
    scale = _discounts(there, discount)
    before = np.concatenate([np.ones_like(weights[:, :1]), weights[:, :-1]], 1)
    q_values, values = _rows(dataset, "q_values", q_values), _rows(dataset, "values", values)
    errors = scale * _padded(dataset, dataset.rewards - q_values)
    expected = scale * _padded(dataset, values)
    numerators = np.concatenate([weights * errors, before * expected], 1)
    denominators = np.concatenate([weights, before], 1) if self_normalised else np.ones_like(numerators)
    return _estimate(numerators, denominators, _effective(weights[:, -1]), confidence)


def effective_sample_size(weights: Float[np.ndarray, " episodes"]) -> float:
    """How many equally weighted episodes have the same variance (Kish): `(sum w)^2 / sum w^2`."""
    square = np.square(weights).sum()
    return float(weights.sum() ** 2 / square) if square > 0 else 0.0


# --- weights


def _rows(dataset: Dataset, name: str, column: np.ndarray) -> np.ndarray:
    column = np.asarray(column, np.float64)
    if column.shape != (len(dataset),):
        raise OffroadError(
            f"{name} have shape {column.shape}, expected one number for each step of the data set: {(len(dataset),)}"
        )
    if bad := int((~np.isfinite(column)).sum()):
        raise OffroadError(f"{name} contain {bad} NaNs or infinities; expected numbers for every step of the data set")
    return column


def _padded_weights(
    dataset: Dataset, probabilities: np.ndarray
) -> tuple[Float[np.ndarray, "episodes longest"], Bool[np.ndarray, "episodes longest"]]:
    """The product of all ratios so far, constant after an episode's end, and where there are steps."""
    if dataset.propensities is None:
        raise OffroadError(
            "the data set has no propensities: with which probability each action was chosen; load them "
            "(propensities='COLUMN') or use fitted Q evaluation (FQE), which needs none"
        )
    probabilities = _rows(dataset, "probabilities", probabilities)
    propensities = _rows(dataset, "propensities", dataset.propensities)
    if (bad := np.flatnonzero(propensities <= 0)).size:
        raise OffroadError(
            f"{bad.size} propensities are not positive, first {propensities[bad[0]]:g} at row {bad[0]}; what was "
            "chosen had a chance: correct the log, or leave these episodes out (Dataset.take)"
        )
    if (bad := np.flatnonzero(probabilities < 0)).size:
        raise OffroadError(
            f"{bad.size} probabilities are negative, first {probabilities[bad[0]]:g} at row {bad[0]}; expected "
            "0 or more"
        )
    there = _padded(dataset, np.ones(len(dataset))) > 0
    weights = np.cumprod(np.where(there, _padded(dataset, probabilities / propensities), 1.0), 1)
    if not weights[:, 0].any():
        raise OffroadError(
            "the policy never chooses what was logged in the first step of an episode: the log tells nothing about it"
        )
    return weights, there


def _padded(dataset: Dataset, column: np.ndarray) -> Float[np.ndarray, "episodes longest"]:
    """A column with a row for each episode, zeros after its end."""
    lengths = dataset.lengths
    rows = np.zeros((len(lengths), int(lengths.max())))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = column
    return rows


def _discounts(there: np.ndarray, discount: float | int) -> np.ndarray:
    return np.float64(discount) ** np.arange(there.shape[1])


def _effective(weights: np.ndarray) -> float:
    effective = effective_sample_size(weights)
    if effective < TOO_FEW:
        warnings.warn(
            f"the weights of {len(weights)} episodes are worth {effective:.1f}: the estimate rests on a handful of "
            "episodes and its interval is too narrow; use a policy closer to the one that was logged, or FQE",
            stacklevel=3,
        )
    return effective


# --- values and their intervals


def _estimate(
    numerators: Float[np.ndarray, "episodes parts"],
    denominators: Float[np.ndarray, "episodes parts"],
    effective: float,
    confidence: float | int,
) -> Estimate:
    """The sum over parts of (sum of numerators / sum of denominators), with its bootstrap interval."""
    if not 0 < confidence < 1:
        raise OffroadError(f"confidence is {confidence}, expected a share between 0 and 1, such as 0.95")
    episodes, rng, found = len(numerators), np.random.default_rng(0), []
    for _ in range(DRAWS // 50):
        counts = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=50).astype(np.float64)
        found.append(_ratios(counts @ numerators, counts @ denominators))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    value = _ratios(numerators.sum(0, keepdims=True), denominators.sum(0, keepdims=True))
    return Estimate(float(value[0]), float(low), float(high), effective)


def _ratios(
    above: Float[np.ndarray, "draws parts"], below: Float[np.ndarray, "draws parts"]
) -> Float[np.ndarray, " draws"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0).sum(-1)
