"""Training from data alone: no environment, only samples of a replay."""

from collections.abc import Callable
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from offroad.agents.agent import Agent
from offroad.data.dataset import Dataset
from offroad.data.replay import Replay
from offroad.errors import OffroadError
from offroad.train.collect import Metrics
from offroad.train.off_policy import PIECE_BYTES, update_many
from offroad.train.progress import Progress

CHUNK = 100
"""Gradient steps per compiled call, and per report; fewer where that many samples would fill the memory."""


def offline(
    agent: Agent,
    replay: Replay | Dataset,
    updates: int,
    *,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[Metrics], None] | None = None,
) -> Agent:
    """The agent after `updates` gradient steps on samples of `replay`, which may be a data set; nothing is added to it.

    **Arguments:** `agent`: one whose config has `batch`, the transitions per gradient step. `seed`: of sampling and of
    the agent's own randomness. `callback`: is given the number of updates so far and the mean metrics of the newest
    ones, about every hundred. Raises `OffroadError` when a metric is not finite.
    """

    learn = jax.jit(update_many, donate_argnums=0)
    agent = jax.tree.map(jnp.array, agent)  # a copy: the compiled call overwrites its input
    random, key, batch, done = np.random.default_rng(seed), jax.random.key(seed), agent.config.batch, 0
    row = sum(x.nbytes for x in jax.tree.leaves(replay.sample(np.random.default_rng(seed), (8, batch)))) / 8
    chunk = int(np.clip(PIECE_BYTES // row, 1, CHUNK))
    with Progress(updates) if progress else nullcontext() as bar:
        while done < updates:
            n = min(chunk, updates - done)
            keys = jax.random.split(jax.random.fold_in(key, done), n)
            agent, found = learn(agent, replay.sample(random, (n, batch)), keys)
            done += n
            metrics: Metrics = {name: float(value) for name, value in found.items()}
            if bad := [name for name, value in metrics.items() if not np.isfinite(value)]:
                raise OffroadError(
                    f"{bad[0]!r} became NaN or infinite before update {done}; lower the learning rate or check the data"
                )
            if bar:
                bar.update(done)
            if callback:
                callback({"update": done, **metrics})
    return agent
