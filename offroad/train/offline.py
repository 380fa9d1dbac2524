"""Training from data alone: compiled chunks of updates on samples of a data set, a replay or anything that samples."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import PyTree

from offroad.agents.agent import Agent
from offroad.data.dataset import Dataset
from offroad.errors import OffroadError
from offroad.nets.normalise import ObservationNorm, RunningMoments
from offroad.train.checkpoint import Saved
from offroad.train.collect import Metrics
from offroad.train.loop import Schedule, Seeds, TrainResult, describe, drive
from offroad.train.off_policy import PIECE_BYTES, update_many

CHUNK = 100
"""Updates per compiled call, and per report; fewer where that many samples would fill the memory."""


@runtime_checkable
class Learner(Protocol):
    """An Equinox module whose leaves are all arrays: an agent, or anything else that learns from batches."""

    config: Any  # a dataclass with `batch`, the rows per update

    def update(self, batch: Any, key: Any) -> Any:
        """Pure. **Returns:** the new learner and scalar metrics."""
        ...


@runtime_checkable
class Data(Protocol):
    """A `Dataset`, a `Replay`, or anything else that rows are drawn from."""

    def sample(self, rng: np.random.Generator, shape: Any) -> PyTree[np.ndarray]:
        """Arrays with leading axes `shape`. Called in another thread than the trainer's, ahead of use."""
        ...


def offline(
    learner: Learner,
    data: Data,
    updates: int,
    *,
    seed: int | Sequence[int] = 0,
    out: str | Path | None = None,
    resume: bool = False,
    eval_env: VectorEnv | None = None,
    schedule: Schedule = Schedule(),
    progress: bool = True,
    wandb: bool = False,
    callback: Callable[[Metrics], None] | None = None,
) -> TrainResult:
    """Trains any agent, or other learner, for `updates` gradient steps on samples of `data`, to which nothing is added.

    **Arguments:**

    - `learner`: fresh or trained before. Where its config has `normalise_observation`, a fresh one (or the agent inside
        it) normalises by the mean and deviation of the data: of all of a `Dataset`, of 65,536 samples of anything else.
    - `seed`: of sampling and of the learner's own randomness. Several seeds train side by side in one compiled call,
        each on batches of its own: `learner` is then `agents.stacked([...])` and the metrics are lists.
    - `eval_env`: an environment in which to evaluate the agent; none is needed to learn.
    - `out`, `resume`, `callback`: as in `on_policy`. A run goes on to the bit, and only with the same data.
    - `schedule`: when to evaluate, log and save, in updates; rounded up to whole chunks, of about a hundred.

    Raises `OffroadError` where a `Dataset` has other shapes than the learner's spaces or actions beyond an agent's
    bounds, when one of its numbers or a metric is not finite, and for an `eval_env` where the learner has no policy.
    """
    if eval_env is not None and not hasattr(learner, "act"):
        raise OffroadError(
            f"a {type(learner).__name__} has no policy (act), so eval_env cannot evaluate it; leave eval_env out"
        )
    if learner.config.batch < 1:
        raise OffroadError(f"batch is {learner.config.batch}; expected at least 1 row for each update")
    if isinstance(data, Dataset):
        taught = getattr(learner, "agent", learner)  # what plays primitives learns from latent actions
        if (spaces := getattr(taught, "spaces", None)) is not None:
            data.check(spaces)
        data.check_numbers(taught.spaces.action if isinstance(taught, Agent) else None)
    config = describe("offline", learner, eval_env, seed, data=fingerprint(data))
    config.pop("num_envs", None)
    with ThreadPoolExecutor(1, "sampler") as sampler:
        return drive(
            _Loop(normalised(learner, data), data, seed, updates, sampler),
            None,
            updates,
            schedule=schedule,
            config=config,
            out=out,
            resume=resume,
            eval_env=eval_env,
            progress=progress,
            wandb=wandb,
            callback=callback,
        )


class _Loop(Seeds):
    """Every update has its own key, and every chunk its own random generator, so that nothing of them must be saved and
    where a run was interrupted does not matter."""

    def __init__(self, learner: Any, data: Data, seed: int | Sequence[int], updates: int, sampler: ThreadPoolExecutor):
        super().__init__(learner, seed)
        self._data, self._updates, self._sampler = data, updates, sampler
        self._seeds = [seed] if isinstance(seed, int) else list(seed)
        self._batch: int = learner.config.batch
        rows = jax.tree.leaves(data.sample(np.random.default_rng(0), (8, self._batch)))
        row_bytes = len(self._seeds) * sum(x.nbytes for x in rows) / 8
        self._chunk = int(np.clip(PIECE_BYTES // row_bytes, 1, CHUNK))
        self._ahead: Future[Any] | None = None

    def start(self) -> None:
        pass

    def advance(self) -> tuple[Metrics, Metrics]:
        batches = self._sample(self.step) if self._ahead is None else self._ahead.result()
        start, self.step = self.step, self._end(self.step)
        self._ahead = None
        if self.step < self._updates:
            # The host draws the next chunk while the device computes this one.
            self._ahead = self._sampler.submit(self._sample, self.step)
        self.agents, metrics = _learn(self.agents, batches, self.keys, start)
        return self.read(metrics), {}

    def _end(self, start: int) -> int:
        """The update after the last one of the chunk that `start` is in."""
        return min((start // self._chunk + 1) * self._chunk, self._updates)

    def _sample(self, start: int) -> PyTree[jax.Array]:
        """The batches from update `start` to the end of its chunk, `[seeds, updates, batch, ...]`."""
        number, shape = start // self._chunk, (self._chunk, self._batch)
        part = slice(start - number * self._chunk, self._end(start) - number * self._chunk)
        each = [self._data.sample(np.random.default_rng([seed, number]), shape) for seed in self._seeds]
        whole = jax.tree.map(lambda *x: x[0][None] if len(x) == 1 else np.stack(x), *each)
        return jax.device_put(jax.tree.map(lambda x: x[:, part], whole))

    def state(self) -> dict[str, Any]:
        return {"agent": self.agents, "keys": self.keys}

    def restore(self, saved: Saved) -> bool:
        self.agents, self.keys = saved.restore("agent", self.agents), saved.restore("keys", self.keys)
        return True


@partial(jax.jit, donate_argnums=0)
def _learn(learners: Any, batches: Any, keys: jax.Array, start: jax.Array) -> Any:
    """The learners after an update on each of their batches, of which the first is update number `start`."""

    def one(learner: Any, batches: Any, key: jax.Array) -> Any:
        numbers = start + jnp.arange(jax.tree.leaves(batches)[0].shape[0])
        return update_many(learner, batches, jax.vmap(partial(jax.random.fold_in, key))(numbers))

    if len(keys) > 1:
        return jax.vmap(one)(learners, batches, keys)
    # Under vmap both branches of every condition would be computed, such as a policy's that moves every second update.
    alone = one(*jax.tree.map(lambda x: x[0], (learners, batches, keys)))
    return jax.tree.map(lambda x: x[None], alone)


NORMALISED_ROWS = 1 << 16


def normalised(learner: Any, data: Data) -> Any:
    """The learner with the moments of the data's observations, if it normalises and has not seen any yet."""
    if hasattr(learner, "agent"):  # around another, which is the one that normalises
        return eqx.tree_at(lambda learner: learner.agent, learner, normalised(learner.agent, data))
    norm = getattr(learner, "observation_norm", None)
    if not isinstance(norm, ObservationNorm) or not learner.config.normalise_observation:
        return learner
    moments = jax.tree.leaves(norm.moments, is_leaf=lambda x: isinstance(x, RunningMoments))
    if any(np.any(each.count > 0) for each in moments):
        return learner  # a policy that was trained with others would break
    fitted = ObservationNorm.create(learner.spaces.observation)
    if isinstance(data, Dataset):
        starts = range(0, len(data), NORMALISED_ROWS)
        pieces = (jax.tree.map(lambda x: x[i : i + NORMALISED_ROWS], data.observations) for i in starts)  # noqa: B023
    else:
        pieces = [data.sample(np.random.default_rng(0), NORMALISED_ROWS).observation]  # pyright: ignore[reportAttributeAccessIssue]
    for piece in pieces:
        fitted = fitted.update(jax.tree.map(jnp.asarray, piece))
    of_all_seeds = jax.tree.map(lambda new, old: jnp.broadcast_to(new, old.shape), fitted, norm)
    return eqx.tree_at(lambda learner: learner.observation_norm, learner, of_all_seeds)


def fingerprint(data: Data) -> dict[str, Any]:
    """What tells data from other data: kind, shapes and a checksum, of all rewards and ends and of random rows."""
    sample = data.sample(np.random.default_rng(0), 1024)
    named = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(sample)}
    digest, whole = hashlib.sha256(), {}
    if isinstance(data, Dataset):
        whole = {name: getattr(data, name) for name in ("rewards", "terminated", "truncated")}
    for array in (named | whole).values():
        digest.update(array.tobytes())
    shapes = {name: [str(x.dtype), *x.shape[1:]] for name, x in named.items()}
    rows = len(data) if hasattr(data, "__len__") else None  # pyright: ignore[reportArgumentType]
    return {"kind": type(data).__name__, "rows": rows, "shapes": shapes, "sha256": digest.hexdigest()}
