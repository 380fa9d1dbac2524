"""Who learns: double DQN from the listeners that it serves, the others from the log alone."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

import offroad
from offroad import train
from offroad.agents import BC, DQN, BCConfig, DiscreteCQL, DiscreteCQLConfig, DQNConfig, stacked
from offroad.studies.playlist.listeners import FIRST_SEED, Greedy, PlaylistBudget, columns, judged, log, spaces
from offroad.studies.study import Context, Metrics

LEARNERS = 32  # listeners served side by side while learning online
SPENT, SPENT_LOST = "sessions while learning", "sessions lost while learning"

# The fewest sessions lost of the settings that were tried on tuning seeds; docs/studies/playlist.md tells of them.
ONLINE = DQNConfig(
    learning_rate=1e-3,
    discount=0.97,
    batch=64,
    hidden=(64, 64),
    target_every=1_000,
    initial_epsilon=0.1,
    final_epsilon=0.02,
    epsilon_updates=1_000,
)
OFFLINE = DiscreteCQLConfig(learning_rate=1e-3, discount=0.97, polyak=0.01, batch=64, hidden=(64, 64), weight=1.0)
CLONING = BCConfig(batch=64, hidden=(64, 64))


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

    fresh = [FIRST_SEED + seed for seed in seeds]
    run = train.off_policy(
        stacked([DQN.create(spaces(), ONLINE, jax.random.key(seed)) for seed in fresh]),
        env,
        songs,
        seed=fresh,
        learning_starts=500,
        train_every=4,
        update_ratio=1 / 8,
        progress=False,
        callback=count,
    ).complete()
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


def learnt(name: str, kind: Any, config: Any, seed: int, budget: PlaylistBudget, context: Context) -> Greedy:
    """The policy of an agent that learnt from the log of that seed."""

    def learn() -> Greedy:
        fresh = FIRST_SEED + seed
        agent = kind.create(spaces(), config, jax.random.key(fresh))
        data = log(seed, budget, context)
        return greedy(train.offline(agent, data, budget.updates, seed=fresh, progress=False).complete().agent)

    return context.once(f"{name} {seed}", learn)


def cloned(seed: int, budget: PlaylistBudget, context: Context) -> Greedy:
    return learnt("bc", BC, CLONING, seed, budget, context)


def conservative(weight: float, seed: int, budget: PlaylistBudget, context: Context) -> Greedy:
    return learnt(f"cql {weight:g}", DiscreteCQL, replace(OFFLINE, weight=weight), seed, budget, context)


def offline(learn: Any, seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    rows = []
    for seed in seeds:
        rows.append(judged(learn(seed, budget, context), seed, budget))
        context.progress(f"seed {seed}", len(rows) / len(seeds))
    return columns(rows)


def bc(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Behaviour cloning from the log, its most likely song."""
    return offline(cloned, seeds, budget, context)


def naive(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Double DQN on the log alone, which trusts songs that the log hardly holds."""
    return offline(partial(conservative, 0.0), seeds, budget, context)


def cql(seeds: list[int], budget: PlaylistBudget, context: Context) -> Metrics:
    """Conservative Q-learning on the log alone."""
    return offline(partial(conservative, OFFLINE.weight), seeds, budget, context)
