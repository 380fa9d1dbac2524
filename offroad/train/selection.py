"""Choosing among trained policies: by fitted Q evaluation on data alone, then with a counted number of real episodes.

```python
found = evaluate_policies({"cql": cql, "bc": bc}, dataset, FQEConfig(), updates=20_000)
advice = recommend(found, behaviour_value(dataset, discount=0.99))
print(advice)  # may recommend nothing
best = choose(["cql", "bc"], lambda name: one_real_episode(policies[name]), episodes=30)
```
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from offroad.agents.agent import stacked
from offroad.agents.fqe import FQE, FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.evaluation import Estimate
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.train.offline import offline

Values = Float[np.ndarray, " policies"] | Sequence[float]


def evaluate_policies(
    policies: Mapping[str, Any],
    dataset: Dataset,
    config: FQEConfig,
    updates: int,
    *,
    spaces: Spaces | None = None,
    seed: int = 0,
    confidence: float | int = 0.95,
) -> dict[str, Estimate]:
    """Every policy's value from the data set's initial states on, by FQE; no environment is touched.

    `spaces` defaults to each policy's own. `Estimate` as of `initial_value`.
    """
    learners = fitted(policies, dataset, config, updates, spaces=spaces, seed=seed)
    return {name: initial_value(learner, dataset, confidence) for name, learner in learners.items()}


def fitted(
    policies: Mapping[str, Any],
    dataset: Dataset,
    config: FQEConfig,
    updates: int,
    *,
    spaces: Spaces | None = None,
    seed: int = 0,
) -> dict[str, FQE]:
    """An FQE of each policy, all of them from equal networks and on equal batches.

    Policies of one kind, with networks of one shape, are evaluated side by side in one compiled call.
    """
    alike: dict[Any, dict[str, FQE]] = {}
    for name, policy in policies.items():
        learner = FQE.create(policy.spaces if spaces is None else spaces, config, policy, jax.random.key(seed))
        leaves, kind = jax.tree.flatten(learner)
        alike.setdefault((kind, *((x.shape, x.dtype) for x in leaves)), {})[name] = learner
    found = {}
    for learners in alike.values():
        together = offline(
            stacked(list(learners.values())), dataset, updates, seed=[seed] * len(learners), progress=False
        ).agent
        found |= {name: jax.tree.map(lambda x, i=i: x[i], together) for i, name in enumerate(learners)}
    return {name: found[name] for name in policies}


def initial_value(learner: FQE, dataset: Dataset, confidence: float | int = 0.95, seed: int = 0) -> Estimate:
    """The mean value of the data set's initial states.

    The interval is normal and adds two variances: the disagreement of the critics, and the choice of initial states. It
    does not know errors that all critics share, for example where the policy goes and no data are; `effective` is the
    number of initial states.
    """
    starts = jax.tree.map(lambda x: np.asarray(x[dataset.starts]), dataset.observations)
    values = np.asarray(learner.value(starts, jax.random.key(seed)), np.float64)
    variance = values.mean(1).var(ddof=min(len(values) - 1, 1)) + values.mean(0).var() / values.shape[1]
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * np.sqrt(variance)
    value = float(values.mean())
    return Estimate(value, value - float(half), value + float(half), float(values.shape[1]))


@dataclass(frozen=True)
class Recommendation:
    """`policy` is None where no lower bound reaches the behaviour's value; `reason` says it in one sentence.
    `ranking`: all names, best estimate first."""

    policy: str | None
    ranking: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return self.reason


def recommend(estimates: Mapping[str, Estimate], behaviour: Estimate) -> Recommendation:
    """The policy with the highest lower bound, if that bound is not under the value of the policy that was logged.

    A policy that is not surely as good as what runs already is not recommended, however high its estimate.
    """
    if not estimates:
        raise OffroadError("there is no policy to recommend; expected estimates of at least one")
    if bad := [name for name, e in estimates.items() if not np.isfinite([e.value, e.low]).all()]:
        raise OffroadError(f"the estimate of {bad[0]!r} is not finite; train its FQE with value_range or a lower rate")
    if not np.isfinite(behaviour.value):
        raise OffroadError(
            "the behaviour's value is not finite; leave out episodes whose rewards are not (Dataset.take)"
        )
    ranking = tuple(sorted(estimates, key=lambda name: -estimates[name].value))
    best = max(ranking, key=lambda name: estimates[name].low)
    if estimates[best].low < behaviour.value:
        reason = (
            f"no policy is recommended: the highest lower bound, {estimates[best].low:.4g} of {best!r}, is under the "
            f"behaviour's value {behaviour.value:.4g}; keep what runs, or collect data where the policies go"
        )
        return Recommendation(None, ranking, reason)
    reason = f"{best!r} is recommended: {estimates[best]} against the behaviour's {behaviour.value:.4g}"
    return Recommendation(best, ranking, reason)


@dataclass(frozen=True)
class Choice:
    """The policy chosen, and the real episodes and their mean return that each got."""

    policy: str
    episodes: dict[str, int]
    means: dict[str, float]


def choose(names: Sequence[str], run: Callable[[str], float], episodes: int, exploration: float | int = 1.0) -> Choice:
    """Finds the best policy with exactly `episodes` real ones: a bandit by upper confidence bounds (UCB1).

    How many episodes it took belongs into every report of the result, as unifloral asks (arXiv 2504.11453). UCB1 is of
    Auer et al. 2002. **Arguments:** `run(name)` plays one episode and returns its return. `exploration` multiplies the
    bonus, which is in units of the range of the returns seen so far. The policy with the highest mean is chosen.
    """
    if len(set(names)) != len(names) or not names:
        raise OffroadError(f"the policies are {list(names)}; expected at least one, each named once")
    if episodes < len(names):
        raise OffroadError(f"{episodes} episodes cannot try {len(names)} policies; expected at least one for each")
    returns: dict[str, list[float]] = {name: [float(run(name))] for name in names}
    for played in range(len(names), episodes):
        every = np.concatenate(list(returns.values()))
        scale = exploration * np.ptp(every)

        def bound(name: str, played: int = played, scale: float = scale) -> float:
            seen = returns[name]
            return float(np.mean(seen) + scale * np.sqrt(2 * np.log(played) / len(seen)))

        name = max(names, key=bound)
        returns[name].append(float(run(name)))
    means = {name: float(np.mean(seen)) for name, seen in returns.items()}
    return Choice(max(names, key=means.__getitem__), {name: len(seen) for name, seen in returns.items()}, means)


# --- how good estimates are, against true values (the definitions of DOPE, arXiv 2103.16596)


def rank_correlation(estimated: Values, true: Values) -> float:
    """Spearman's: the correlation of the ranks, ties sharing theirs. NaN where all of either are equal."""
    x, y = (_ranks(v) for v in _pair(estimated, true))
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / spread) if spread > 0 else float("nan")


def regret_at(k: int, estimated: Values, true: Values) -> float:
    """How much the best of the `k` policies ranked first is worth less than the best of all, in units of the value."""
    guess, truth = _pair(estimated, true)
    return float(truth.max() - truth[np.argsort(-guess, kind="stable")[:k]].max())


def absolute_error(estimated: Values, true: Values) -> float:
    """The mean over policies of the absolute difference."""
    guess, truth = _pair(estimated, true)
    return float(np.abs(guess - truth).mean())


def _pair(estimated: Values, true: Values) -> tuple[np.ndarray, np.ndarray]:
    guess, truth = np.asarray(estimated, np.float64), np.asarray(true, np.float64)
    if guess.shape != truth.shape or guess.ndim != 1 or not guess.size:
        raise OffroadError(
            f"estimated and true values have shapes {guess.shape} and {truth.shape}; expected one number "
            "for each policy"
        )
    return guess, truth


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
