"""What it costs to explore online, and what a log is worth: a playlist for listeners who leave when disappointed."""

import numpy as np

from offroad.envs.playlist import Popular
from offroad.studies.playlist.choice import open_bandit, selection
from offroad.studies.playlist.learning import SPENT, SPENT_LOST, bc, cql, naive, online
from offroad.studies.playlist.listeners import VALUE, PlaylistBudget, Uniform, columns, judged, log, recorded
from offroad.studies.playlist.pictures import cost, ranking, values
from offroad.studies.study import Claim, Context, Metrics, Results, Study, at_least, at_most

__all__ = ["STUDY", "recorded"]


def behaviour(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """What runs today: hits in turn, a tenth of the songs at random; it wrote the log."""
    rows = []
    for seed in seeds:
        data = log(seed, budget, context)
        lost = float(data.info["left"].sum())
        logged = {"songs in the log [thousands]": len(data) / 1e3, "sessions in the log": float(len(data.ends))}
        rows.append(judged(Popular(), seed, budget, sampled=True) | logged | {"sessions lost in the log": lost})
    return columns(rows)


def random(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Songs drawn uniformly: how exploration begins."""
    return columns([judged(Uniform(), seed, budget, sampled=True) for seed in seeds])


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
            "... and better than cloning the log, which drops its random songs: songs more in a session",
            "above 0",
            lambda: ((found := better("cql", "bc")), found > 0),
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
            "FQE ranks the eight policies: Spearman's rank correlation with their true values",
            "at least 0.6",
            lambda: at_least(float(np.mean(r.values("selection", "rank correlation, FQE"))), 0.6),
        ),
        r.claim(
            "... and its first choice costs little: songs a session less than the best of all",
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
            seeds=1,
            minutes=1.5,
            sessions=1000,
            judging_sessions=5000,
            updates=2000,
            evaluation_updates=1500,
            listeners=2000,
            episodes=60,
        ),
        "cpu": PlaylistBudget(
            seeds=5,
            minutes=5,
            sessions=1000,
            judging_sessions=5000,
            updates=2000,
            evaluation_updates=1500,
            listeners=4000,
            episodes=120,
        ),
    },
    verdict=verdict,
    figures=(cost, values, ranking),
    shares={"online": 3, "selection": 10},
)
