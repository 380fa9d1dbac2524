"""Which policy to deploy: estimates from logs against true values, and real clicks."""

import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from offroad.agents.fqe import FQE, FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.evaluation import behaviour_value, doubly_robust, importance_sampling
from offroad.data.readers import load
from offroad.envs.playlist import Popular, play
from offroad.studies.playlist.learning import cloned, conservative
from offroad.studies.playlist.listeners import (
    FIRST_SEED,
    TRIAL_SEED,
    VALUE,
    PlaylistBudget,
    columns,
    judged,
    judging_log,
    spaces,
)
from offroad.studies.study import Context, Metrics
from offroad.train.selection import (
    absolute_error,
    choose,
    fitted,
    initial_value,
    rank_correlation,
    recommend,
    regret_at,
)

WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of conservatism, among which the selection has to choose; 0 is naive
# Values are carried back over 30 songs, each of which waits for the target to follow: hence a fast one. Without layer
# norm the critics made up values of songs that are rare in the log (tuning seeds 101 to 103).
EVALUATION = FQEConfig(
    learning_rate=1e-3,
    discount=1,
    polyak=0.05,
    batch=64,
    hidden=(64, 64),
    critics=2,
    value_range=(0, 30),
    layer_norm=True,
)


def selection(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Which of eight policies to deploy: FQE, importance sampling and doubly robust, then counted real sessions."""
    rows, points, names = [], [], []
    for seed in seeds:
        policies = {"bc": cloned(seed, budget, context)}
        policies |= {f"cql {weight:g}": conservative(weight, seed, budget, context) for weight in WEIGHTS}
        names = list(policies)
        # A policy looks better than it is on the very log whose luck it learnt, and what it plays may be rare in a
        # small one: it is judged by another, larger log of the same safe policy.
        data = judging_log(seed, budget, context)
        true = np.array([judged(policy, seed, budget)[VALUE] for policy in policies.values()])
        learners = fitted(
            policies, data, EVALUATION, budget.evaluation_updates, spaces=spaces(), seed=FIRST_SEED + seed
        )
        found = {name: initial_value(learner, data) for name, learner in learners.items()}
        guesses: dict[str, list[float]] = {"FQE": [e.value for e in found.values()], "WIS": [], "DR": []}
        effective = []
        for name in names:
            follows, q, v = (np.asarray(x, np.float64) for x in _seen(learners[name], data.observations, data.actions))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few sessions count: the metric "effective sessions" tells it
                sampled = importance_sampling(data, follows, per_decision=True, self_normalised=True)
                robust = doubly_robust(data, follows, q, v)
            guesses["WIS"].append(sampled.value)
            guesses["DR"].append(robust.value)
            effective.append(sampled.effective)
        row = {}
        for method, values in guesses.items():
            row[f"rank correlation, {method}"] = rank_correlation(values, true)
            row[f"regret@1, {method}"] = regret_at(1, values, true)
            row[f"absolute error, {method}"] = absolute_error(values, true)
        row["median effective sessions"] = float(np.median(effective))
        advice = recommend(found, behaviour_value(data))
        # What is deployed without advice is what runs already.
        deployed = advice.policy and true[names.index(advice.policy)]
        row["recommended anything"] = float(advice.policy is not None)
        row["value after the recommendation"] = deployed or judged(Popular(), seed, budget, sampled=True)[VALUE]
        real, key = np.random.default_rng(FIRST_SEED + seed), jax.random.key(TRIAL_SEED + FIRST_SEED + seed)
        pools = {name: play(policy, 500, key).reward.sum(1) for name, policy in policies.items()}
        choice = choose(names, lambda name, pools=pools, real=real: real.choice(pools[name]), budget.episodes)
        row["value chosen with real sessions"] = true[names.index(choice.policy)]
        row["real sessions used"] = float(sum(choice.episodes.values()))
        row["best of all"], row["worst of all"] = true.max(), true.min()
        rows.append(row)
        points.append(np.array([true, *guesses.values()]))
        context.progress(f"seed {seed}", len(rows) / len(seeds))
    context.keep("guesses", values=np.array(points), names=np.array(names))
    return columns(rows)


@jax.jit  # one program instead of a dozen for every number of rows
def _seen(learner: FQE, observations: Any, actions: Any) -> tuple[Any, Any, Any]:
    """For each row: whether the policy does what was logged, and what FQE says of the logged and of its own action."""
    q, v = learner.action_value(observations, actions), learner.value(observations)
    return learner.policy.act(observations)[0] == actions, q.mean(0), v.mean(0)


def open_bandit(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Real clicks: the value of ZOZOTOWN's Thompson sampling from the log of its random policy."""
    context.seeds = seeds[:1]
    folder = files("offroad.data") / "samples" / "open_bandit"
    uniform, thompson = (load(Path(str(folder / f"{name}.npz"))) for name in ("random", "thompson"))
    chances = action_chances(thompson)
    # A model of the clicks: the rate of each item, drawn towards the overall rate as if seen 500 times at that.
    rate = uniform.rewards.mean()
    clicks = np.bincount(uniform.actions, uniform.rewards, 80)
    model = (clicks + 500 * rate) / (np.bincount(uniform.actions, minlength=80) + 500)
    target = chances[uniform.observations - 1, uniform.actions]
    row = {"clicks measured, Thompson [%]": 100 * float(thompson.rewards.mean())}
    row["clicks measured, random [%]"] = 100 * float(rate)
    estimates = {
        "SNIPS": importance_sampling(uniform, target, self_normalised=True),
        "DR": doubly_robust(uniform, target, model[uniform.actions], (chances @ model)[uniform.observations - 1]),
    }
    for name, found in estimates.items():
        row[f"{name} [%]"] = 100 * found.value
        row[f"{name}, lower end [%]"] = 100 * found.low
        row[f"{name}, upper end [%]"] = 100 * found.high
    row["effective impressions"] = estimates["SNIPS"].effective
    return columns([row])


def action_chances(thompson: Dataset) -> Float[np.ndarray, "3 80"]:
    """How likely the policy shows each item at each place, on average over the week.

    Propensities of the same item at the same place vary over the log. They are known only for what was shown; the mean
    of 1 / propensity over the impressions of an item estimates 1 / (its mean propensity), without a plain mean's bias
    towards times at which it was likely. Normalised to add up to 1 at each place.
    """
    chances = np.zeros((3, 80))
    place, item = thompson.observations - 1, thompson.actions
    counts, inverse = np.zeros((3, 80)), np.zeros((3, 80))
    np.add.at(counts, (place, item), 1)
    assert thompson.propensities is not None
    np.add.at(inverse, (place, item), 1 / thompson.propensities)
    np.divide(counts, inverse, out=chances, where=counts > 0)
    return chances / chances.sum(1, keepdims=True)
