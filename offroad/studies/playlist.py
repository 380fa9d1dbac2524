"""What it costs to explore online, and what a log is worth: a playlist for listeners who leave when disappointed."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import offroad
from offroad import train
from offroad.agents import BC, DQN, BCConfig, DiscreteCQL, DiscreteCQLConfig, DQNConfig, stacked
from offroad.agents.fqe import FQE, FQEConfig
from offroad.data.dataset import Dataset
from offroad.data.evaluation import behaviour_value, doubly_robust, importance_sampling
from offroad.data.readers import load
from offroad.data.spaces import Spaces
from offroad.envs.playlist import SONGS, Popular, Sessions, play
from offroad.report import plots
from offroad.studies.study import Budget, Claim, Context, Figure, Metrics, Results, Study, at_least, at_most
from offroad.train.selection import absolute_error, choose, initial_value, rank_correlation, recommend, regret_at

TEST_KEY = 30_000  # listeners of the evaluation, apart from those of logs, training and tuning
LEARNERS = 32  # listeners served side by side while learning online
HIDDEN = (64, 64)
VALUE, LOST = "songs heard in a session", "share of sessions lost"
SPENT, SPENT_LOST = "sessions while learning", "sessions lost while learning"

# Offline settings were compared on a log of seed 101 and listeners of seed 777, which no arm uses. The online ones were
# run once on seed 101 and not compared with others.
ONLINE = DQNConfig(
    learning_rate=1e-3,
    discount=0.97,
    batch=64,
    hidden=HIDDEN,
    target_every=100,
    initial_epsilon=0.3,
    epsilon_updates=1_000,
)
OFFLINE = DiscreteCQLConfig(learning_rate=1e-3, discount=0.97, polyak=0.01, batch=64, hidden=HIDDEN, weight=1.0)
CLONING = BCConfig(batch=64, hidden=HIDDEN)
# Values are carried back over 30 songs, each of which waits for the target to follow: hence a fast one.
EVALUATION = FQEConfig(
    learning_rate=1e-3, discount=1, polyak=0.05, batch=64, hidden=HIDDEN, critics=4, value_range=(0, 30)
)
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)  # of conservatism, among which the selection has to choose; 0 is naive


@dataclass(frozen=True, kw_only=True)
class PlaylistBudget(Budget):
    sessions: int  # in the log
    updates: int  # of each offline learner
    evaluation_updates: int  # of fitted Q evaluation, for each policy
    listeners: int  # of the evaluation
    episodes: int  # real sessions that the selection may use


class Greedy(eqx.Module):
    """The action with the highest output of a network: every candidate's form, so that one program judges them all."""

    encoder: Any
    head: Any

    def act(self, observation: Float[Any, "batch seen"], key: Any = None, memory: Any = ()) -> tuple[Any, Any]:
        return jnp.argmax(self.head(self.encoder(observation)), -1), memory


class Uniform(eqx.Module):
    """Songs at random."""

    def act(self, observation: Float[Any, "batch seen"], key: Any = None, memory: Any = ()) -> tuple[Any, Any]:
        return jax.random.randint(key, observation.shape[:1], 0, SONGS), memory


def spaces() -> Spaces:
    return Spaces.of(offroad.make_vec("offroad/Playlist-v0", 1))


def recorded(sessions: Sessions) -> Dataset:
    """A data set of whole sessions, with propensities."""
    heard, lengths = sessions.heard, sessions.heard.sum(1)
    ended = np.zeros(lengths.sum(), bool)
    ended[np.cumsum(lengths) - 1] = True
    return Dataset(
        observations=sessions.observation[:, :-1][heard],
        actions=sessions.action[heard],
        rewards=sessions.reward[heard],
        terminated=ended,
        truncated=np.zeros_like(ended),
        final_observations=sessions.observation[np.arange(len(lengths)), lengths],
        propensities=sessions.propensity[heard],
    )


def log(seed: int, budget: PlaylistBudget, context: Context) -> Dataset:
    """What the safe policy did, and what came of it."""

    def record() -> Dataset:
        return recorded(play(Popular(), budget.sessions, jax.random.key(seed), sampled=True))

    return context.once(f"log {seed}", record)


def judged(policy: Any, seed: int, budget: PlaylistBudget, sampled: bool = False) -> dict[str, float]:
    """True values, on listeners that nobody learnt from and that are the same for every policy."""
    met = play(policy, budget.listeners, jax.random.key(TEST_KEY + seed), sampled=sampled)
    return {VALUE: met.value, LOST: met.lost}


def columns(rows: list[dict[str, float]]) -> Metrics:
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- the arms


def behaviour(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """What runs today: hits in turn, a tenth of the songs at random; it wrote the log."""
    rows = []
    for seed in seeds:
        data = log(seed, budget, context)
        lost = float((data.lengths < 30).sum())
        logged = {"songs in the log [thousands]": len(data) / 1e3, "sessions in the log": float(len(data.ends))}
        rows.append(judged(Popular(), seed, budget, sampled=True) | logged | {"sessions lost in the log": lost})
    return columns(rows)


def random(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Songs drawn uniformly: how exploration begins."""
    return columns([judged(Uniform(), seed, budget, sampled=True) for seed in seeds])


def online(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Double DQN that learns from the listeners it serves, for as many songs as the log holds."""
    env = offroad.make_vec("offroad/Playlist-v0", LEARNERS)
    songs = round(np.mean([len(log(seed, budget, context)) for seed in seeds]))
    ended, lost, curve, before = np.zeros(len(seeds)), np.zeros(len(seeds)), [], 0

    def count(metrics: dict[str, Any]) -> None:
        nonlocal before, ended, lost
        lost = lost + np.asarray(metrics["env/left"]) * (metrics["step"] - before)
        ended = ended + np.asarray(metrics["episode/count"])
        before = metrics["step"]
        curve.append((before, ended, lost))

    agents = stacked([DQN.create(Spaces.of(env), ONLINE, jax.random.key(seed)) for seed in seeds])
    run = train.off_policy(
        agents,
        env,
        songs,
        seed=seeds,
        learning_starts=500,
        train_every=4,
        update_ratio=1 / 8,
        progress=False,
        callback=count,
    )
    steps, all_ended, all_lost = zip(*curve)
    context.keep("cost", step=np.array(steps), ended=np.array(all_ended), lost=np.array(all_lost))
    rows = []
    for i, seed in enumerate(seeds):
        policy = greedy(jax.tree.map(lambda leaf, i=i: leaf[i], run.agent))
        rows.append(judged(policy, seed, budget) | {SPENT: float(ended[i]), SPENT_LOST: float(lost[i])})
    return columns(rows)


def greedy(agent: Any) -> Greedy:
    if isinstance(agent, BC):
        return Greedy(agent.policy.encoder, agent.policy.head)
    return Greedy(agent.network.encoder, agent.network.advantage)


def cloned(seed: int, budget: PlaylistBudget, context: Context) -> Greedy:
    def learn() -> Greedy:
        agent = BC.create(spaces(), CLONING, jax.random.key(seed))
        return greedy(train.offline(agent, log(seed, budget, context), budget.updates, seed=seed, progress=False).agent)

    return context.once(f"bc {seed}", learn)


def conservative(weight: float, seed: int, budget: PlaylistBudget, context: Context) -> Greedy:
    def learn() -> Greedy:
        agent = DiscreteCQL.create(spaces(), replace(OFFLINE, weight=weight), jax.random.key(seed))
        return greedy(train.offline(agent, log(seed, budget, context), budget.updates, seed=seed, progress=False).agent)

    return context.once(f"cql {weight} {seed}", learn)


def offline_arm(learn: Any, seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    rows = []
    for seed in seeds:
        rows.append(judged(learn(seed, budget, context), seed, budget))
        context.progress(f"seed {seed}: {rows[-1][VALUE]:.1f} songs", len(rows) / len(seeds))
    return columns(rows)


def bc(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Behaviour cloning from the log, its most likely song."""
    return offline_arm(cloned, seeds, budget, context)


def naive(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Double DQN on the log alone, which trusts songs that the log hardly holds."""
    return offline_arm(partial(conservative, 0.0), seeds, budget, context)


def cql(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Conservative Q-learning on the log alone."""
    return offline_arm(partial(conservative, OFFLINE.weight), seeds, budget, context)


def selection(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Which of six policies to deploy: FQE, importance sampling and doubly robust, then counted real sessions."""
    rows, points = [], []
    for seed in seeds:
        data = log(seed, budget, context)
        policies = {"bc": cloned(seed, budget, context)}
        policies |= {f"cql {weight:g}": conservative(weight, seed, budget, context) for weight in WEIGHTS}
        true = np.array([judged(policy, seed, budget)[VALUE] for policy in policies.values()])
        guesses: dict[str, list[float]] = {"FQE": [], "WIS": [], "DR": []}
        found, effective = {}, []
        for name, policy in policies.items():
            learner = FQE.create(spaces(), EVALUATION, policy, jax.random.key(seed))
            learner = train.offline(learner, data, budget.evaluation_updates, seed=seed, progress=False).agent
            found[name] = initial_value(learner, data)
            chances = np.asarray(policy.act(data.observations)[0] == data.actions, np.float64)
            q = np.asarray(learner.action_value(data.observations, data.actions).mean(0), np.float64)
            v = np.asarray(learner.value(data.observations).mean(0), np.float64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few sessions count: the metric "effective sessions" tells it
                sampled = importance_sampling(data, chances, per_decision=True, self_normalised=True)
                robust = doubly_robust(data, chances, q, v)
            guesses["FQE"].append(found[name].value)
            guesses["WIS"].append(sampled.value)
            guesses["DR"].append(robust.value)
            effective.append(sampled.effective)
            context.progress(f"seed {seed}, {name}", (len(rows) + len(found) / len(policies)) / len(seeds))
        row = {}
        for method, values in guesses.items():
            row[f"rank correlation, {method}"] = rank_correlation(values, true)
            row[f"regret@1, {method}"] = regret_at(1, values, true)
            row[f"absolute error, {method}"] = absolute_error(values, true)
        row["median effective sessions"] = float(np.median(effective))
        advice = recommend(found, behaviour_value(data))
        # What is deployed without advice is what runs already.
        deployed = advice.policy and true[list(policies).index(advice.policy)]
        row["recommended anything"] = float(advice.policy is not None)
        row["value after the recommendation"] = deployed or judged(Popular(), seed, budget, sampled=True)[VALUE]
        real = np.random.default_rng(seed)
        pools = {n: play(p, 500, jax.random.key(2 * TEST_KEY + seed)).reward.sum(1) for n, p in policies.items()}
        choice = choose(list(policies), lambda name, pools=pools, real=real: real.choice(pools[name]), budget.episodes)
        row["value chosen with real sessions"] = true[list(policies).index(choice.policy)]
        row["real sessions used"] = float(sum(choice.episodes.values()))
        row["best of the six"] = true.max()
        rows.append(row)
        points.append(np.array([true, *guesses.values()]))
    context.keep("guesses", values=np.array(points), names=np.array(list(policies)))
    return columns(rows)


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

    The policy was updated now and then, so that propensities vary. They are known only for what was shown; the mean of
    1 / propensity over the impressions of an item estimates 1 / (its mean propensity), without the bias of a plain mean
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


# --- the verdict


def verdict(r: Results) -> list[Claim]:
    def ratio() -> tuple[float, bool]:
        """Shares of sessions lost: the same number of songs makes more, shorter sessions where listeners leave."""
        learning = np.divide(r.values("online", SPENT_LOST), r.values("online", SPENT))
        logged = np.divide(
            r.values("behaviour", "sessions lost in the log"), r.values("behaviour", "sessions in the log")
        )
        return at_least(float(np.mean(learning / logged)), 1.0)

    def lost() -> tuple[float, bool]:
        counts = np.divide(r.values("online", SPENT_LOST), r.values("behaviour", "sessions lost in the log"))
        return at_least(float(np.mean(counts)), 2.0)

    def covers(method: str) -> tuple[str, bool]:
        low, high = (r.values("open_bandit", f"{method}, {end} end [%]")[0] for end in ("lower", "upper"))
        truth = r.values("open_bandit", "clicks measured, Thompson [%]")[0]
        return f"{low:.2f} % to {high:.2f} %", low <= truth <= high

    def better(arm: str, other: str) -> float:
        return r.iqm(arm, VALUE) - r.iqm(other, VALUE)

    return [
        r.claim(
            "CQL from the log alone is at least as good as the policy that wrote it: songs more in a session",
            "at least 0",
            lambda: at_least(better("cql", "behaviour"), 0.0),
        ),
        r.claim(
            "Learning online loses sessions: how many times those that the log lost, for as many songs",
            "at least 2",
            lost,
        ),
        r.claim("... as shares of the sessions", "at least 1", ratio),
        r.claim(
            "Naive Q-learning on the same log fails: songs fewer in a session than the policy that wrote it",
            "above 0",
            lambda: ((found := -better("naive", "behaviour")), found > 0),
        ),
        r.claim(
            "FQE ranks the six policies: Spearman's rank correlation with their true values",
            "at least 0.6",
            lambda: at_least(float(np.mean(r.values("selection", "rank correlation, FQE"))), 0.6),
        ),
        r.claim(
            "... and its first choice costs little: songs a session less than the best of the six",
            "at most 1",
            lambda: at_most(float(np.mean(r.values("selection", "regret@1, FQE"))), 1.0),
        ),
        r.claim(
            "What is deployed on advice is never worse than what runs: songs more, worst seed",
            "at least 0",
            lambda: at_least(
                min(
                    np.subtract(
                        r.values("selection", "value after the recommendation"), r.values("behaviour", VALUE)
                    ).tolist()
                ),
                0.0,
            ),
        ),
        r.claim(
            "Open Bandit: the 95 % interval from the random log contains Thompson's measured 0.42 %, SNIPS",
            "contains it",
            lambda: covers("SNIPS"),
        ),
        r.claim("... doubly robust", "contains it", lambda: covers("DR")),
    ]


# --- figures


def cost(r: Results, folder: Path) -> Figure:
    kept, logged = r.artefact("online", "cost"), r["behaviour"]
    songs = np.mean(logged["songs in the log [thousands]"]) * 1e3
    slope = np.divide(logged["sessions lost in the log"], songs)
    curves = {
        "double DQN, learning online": (kept["step"], kept["lost"]),
        "the safe policy, writing the log": (kept["step"], kept["step"][:, None] * slope),
    }
    path = plots.learning_curves(folder / "cost.png", curves, "sessions lost so far")
    return Figure("What learning costs", path, "Learning from the log loses none but those that the log had lost.")


def values(r: Results, folder: Path) -> Figure:
    arms = {arm: r.values(arm, VALUE) for arm in ("random", "behaviour", "online", "naive", "bc", "cql")}
    return Figure(
        "What is learnt", plots.dots(folder / "values.png", arms, VALUE), "On listeners that nobody learnt from."
    )


def guesses(r: Results, folder: Path) -> Figure:
    scores = {name: r.values("selection", f"rank correlation, {name}") for name in ("FQE", "WIS", "DR")}
    path = plots.dots(folder / "ranking.png", scores, "rank correlation with the true values")
    return Figure("Who ranks six policies right", path, "From the log alone.")


STUDY = Study(
    name="playlist",
    title="Playlists: learning from a log instead of from disappointed listeners",
    claim=(
        "Exploring online costs sessions of listeners who leave; learning from the log of a safe policy costs none and "
        "is at least as good as that policy. Which of several learnt policies to deploy the log tells as well."
    ),
    source="the talk's example; Kumar et al. 2020, arXiv 2006.04779; Saito et al. 2020, arXiv 2008.07146",
    published=(),
    arms={
        "behaviour": behaviour,
        "random": random,
        "online": online,
        "bc": bc,
        "naive": naive,
        "cql": cql,
        "selection": selection,
        "open_bandit": open_bandit,
    },
    profiles={
        "quick": PlaylistBudget(
            seeds=1, minutes=1.5, sessions=1000, updates=2000, evaluation_updates=3000, listeners=2000, episodes=60
        ),
        "cpu": PlaylistBudget(
            seeds=5, minutes=5, sessions=1000, updates=2000, evaluation_updates=5000, listeners=4000, episodes=120
        ),
    },
    verdict=verdict,
    figures=(cost, values, guesses),
    shares={"online": 3, "selection": 10},
)
