"""The listeners of the study: what the safe policy logged about them, and what a policy is truly worth to them."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import offroad
from offroad.data.dataset import Dataset
from offroad.data.spaces import Spaces
from offroad.envs.playlist import SONGS, Popular, Sessions, play
from offroad.studies.study import Budget, Context, Metrics

VALUE, LOST = "songs heard in a session", "share of sessions lost"

# Seed s of a report is drawn from FIRST_SEED + s: listeners and networks of smaller numbers were seen while the study
# was written and tuned. Tuning was on seeds 101 to 103 and listeners of seed 777.
FIRST_SEED = 2_000
EVALUATION_SEED = 30_000  # listeners of the evaluation, apart from those of logs and of learning
JUDGING_SEED = 60_000  # of the log that policies are judged by, apart from the one that they learnt from
TRIAL_SEED = 90_000  # of the real sessions that a choice may use


@dataclass(frozen=True, kw_only=True)
class PlaylistBudget(Budget):
    sessions: int  # in the log to learn from
    judging_sessions: int  # in the log to judge by
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
    """A data set of whole sessions, with propensities and, in `info["left"]`, where a listener left."""
    heard, lengths = sessions.heard, sessions.heard.sum(1)
    ended, left = np.zeros(lengths.sum(), bool), np.zeros(lengths.sum(), bool)
    ends = np.cumsum(lengths) - 1
    ended[ends], left[ends] = True, sessions.left
    return Dataset(
        observations=sessions.observation[:, :-1][heard],
        actions=sessions.action[heard],
        rewards=sessions.reward[heard],
        terminated=ended,
        truncated=np.zeros_like(ended),
        final_observations=sessions.observation[np.arange(len(lengths)), lengths],
        propensities=sessions.propensity[heard],
        info={"left": left},
    )


def log(seed: int, budget: PlaylistBudget, context: Context) -> Dataset:
    """What the safe policy did, and what came of it: to learn from."""
    return context.once(f"log {seed}", lambda: _log(budget.sessions, FIRST_SEED + seed))


def judging_log(seed: int, budget: PlaylistBudget, context: Context) -> Dataset:
    """Other sessions of the safe policy, to judge by what was learnt from the first ones."""
    return context.once(f"judging {seed}", lambda: _log(budget.judging_sessions, JUDGING_SEED + FIRST_SEED + seed))


def _log(sessions: int, seed: int) -> Dataset:
    return recorded(play(Popular(), sessions, jax.random.key(seed), sampled=True))


def judged(policy: Any, seed: int, budget: PlaylistBudget, sampled: bool = False) -> dict[str, float]:
    """True values, on listeners that nobody learnt from and that are the same for every policy."""
    key = jax.random.key(EVALUATION_SEED + FIRST_SEED + seed)
    met = play(policy, budget.listeners, key, sampled=sampled)
    return {VALUE: met.value, LOST: met.lost}


def columns(rows: list[dict[str, float]]) -> Metrics:
    return {name: [row[name] for row in rows] for name in rows[0]}
