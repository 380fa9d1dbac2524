"""What all training loops share: progress, logging, evaluation, checkpoints, signals and the guard against NaN."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import VectorEnv

from offroad.agents import AGENTS, Agent, stacked
from offroad.data import config as configuration
from offroad.data.strict_json import strict
from offroad.errors import OffroadError
from offroad.train import checkpoint
from offroad.train.checkpoint import Saved
from offroad.train.collect import Metrics, is_compiled, name_of
from offroad.train.evaluate import Evaluator
from offroad.train.progress import Progress
from offroad.train.run import Run


@runtime_checkable
class Loop(Protocol):
    """One way of training, advanced chunk by chunk. Between chunks it can be saved and restored exactly."""

    step: int  # environment steps taken so far, or updates where there is no environment

    @property
    def agent(self) -> Any: ...

    @property
    def seed(self) -> int | Sequence[int]: ...

    @property
    def stacked(self) -> bool:
        """Whether `agent` is a stack of agents, one a seed."""
        ...

    def start(self) -> None:
        """Prepares a new run: resets the environments."""
        ...

    def advance(self) -> tuple[Metrics, Metrics]:
        """Collects and learns for one chunk.

        **Returns:** the learner's metrics, which must be finite, and the environment's, which need not be.
        """
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, saved: Saved) -> bool:
        """Continues from a checkpoint. **Returns:** False if the environment had to be reset, so that the
        continuation is not bitwise the same as an uninterrupted run."""
        ...


@dataclass
class TrainResult:
    """What a training run leaves: the last agent (never the best one) and its curve."""

    agent: Any  # an `Agent`, or the other learner that `train.offline` was given
    step: int
    history: list[Metrics]  # as in metrics.jsonl; a resumed run's from its beginning
    path: Path | None  # the run folder
    interrupted: bool  # by SIGINT or SIGTERM
    seconds: float

    def complete(self) -> "TrainResult":
        """Itself; goes on with the interrupt (raises KeyboardInterrupt) where half a training is of no use."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self


@dataclass(frozen=True)
class Schedule:
    """When a run evaluates and saves, in environment steps (offline: in updates); 0 means only at the end."""

    evaluate: int = 0
    checkpoint: int = 0
    episodes: int = 10  # per evaluation
    log: int = 1


class Seeds:
    """What compiled loops share: agents and random keys stacked over seeds, a single seed being a stack of one."""

    def __init__(self, agent: Any, seed: int | Sequence[int]):
        self.step, self.seed, self.stacked = 0, seed, not isinstance(seed, int)
        seeds = [seed] if isinstance(seed, int) else list(seed)
        # A copy: compiled loops overwrite their input.
        self.agents = jax.tree.map(jnp.array, agent) if self.stacked else stacked([agent])
        if any(leaf.shape[:1] != (len(seeds),) for leaf in jax.tree.leaves(self.agents)):
            raise OffroadError(
                f"{len(seeds)} seeds need a stack of {len(seeds)} agents: "
                "pass agents.stacked([...]) with an agent for each, or a single seed as an integer"
            )
        self.keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    @property
    def agent(self) -> Any:
        return self.agents if self.stacked else jax.tree.map(lambda x: x[0], self.agents)

    def read(self, metrics: Any) -> Any:
        """Metrics as NumPy numbers, or arrays of them with several seeds."""
        return jax.tree.map(lambda x: np.asarray(x) if self.stacked else np.asarray(x)[0], metrics)


def drive(
    loop: Loop,
    env: VectorEnv | None,
    steps: int,
    *,
    schedule: Schedule,
    config: dict[str, Any],
    out: str | Path | None,
    resume: bool,
    eval_env: VectorEnv | None,
    progress: bool,
    wandb: bool,
    callback: Callable[[Metrics], None] | None,
) -> TrainResult:
    """Advances `loop` until `steps` steps are taken, of `env` or, without one, updates; the body of every trainer."""
    if env is not None and eval_env is env and not is_compiled(env):
        raise OffroadError("eval_env is the training environment, whose episodes it would cut short; make another one")
    run = Run.create(Path(out), config, resume=resume, wandb=wandb) if out is not None else None
    try:
        evaluator = Evaluator(eval_env, schedule.episodes, loop.stacked) if eval_env is not None else None
        history: list[Metrics] = []
        found = run.load_latest() if run else None
        if run and found:
            loop.step, saved = found
            history = [{name: x for name, x in line.items() if name != "time"} for line in run.metrics()]
            if not loop.restore(saved):
                print("the environment's state cannot be saved: its episodes start anew, all else continues exactly")
        else:
            loop.start()
        began, name = time.monotonic(), "" if env is None else name_of(env)
        with _signals() as stop, Progress(steps, loop.step) if progress else nullcontext() as bar:
            _advance_all(loop, steps, schedule, name, run, evaluator, bar, stop, history, callback)
        seconds = time.monotonic() - began
        return TrainResult(loop.agent, loop.step, history, run.path if run else None, bool(stop), seconds)
    finally:
        if run:
            run.close()


def _advance_all(
    loop: Loop,
    steps: int,
    schedule: Schedule,
    env_name: str,
    run: Run | None,
    evaluator: Evaluator | None,
    bar: Progress | None,
    stop: list[int],
    history: list[Metrics],
    callback: Callable[[Metrics], None] | None,
) -> None:
    began, first = time.monotonic(), loop.step
    seed = EVALUATION_SEED + (loop.seed if isinstance(loop.seed, int) else loop.seed[0])
    saved = first

    def save() -> None:
        nonlocal saved
        if run and loop.step > saved:
            _save(run, loop)
            saved = loop.step

    while loop.step < steps and not stop:
        before = loop.step
        try:
            learner, environment = loop.advance()
        except OffroadError:
            save()  # only the environment failed: what was learnt is whole
            raise
        if broken := np.sum(environment.pop("nonfinite", 0)):
            raise OffroadError(
                f"environment {env_name!r} returned {broken} NaNs or infinities between steps {before} and {loop.step}"
                f"; {_kept(run)}; fix the environment and resume the run"
            )
        _require_finite(learner, loop.step, run)
        metrics: Metrics = {**environment, **learner}
        metrics["time/steps_per_second"] = (loop.step - first) / max(time.monotonic() - began, 1e-9)
        failure = None
        if evaluate := evaluator if _due(before, loop.step, steps, schedule.evaluate) else None:
            try:
                metrics |= evaluate(loop.agent, seed).metrics()
            except OffroadError as error:
                failure = error
        # What is not known yet, such as the return when no episode has ended, is left out.
        metrics = {name: _plain(value) for name, value in metrics.items() if not np.isnan(value).all()}
        if evaluate or _due(before, loop.step, steps, schedule.log):
            history.append({"step": loop.step, **metrics})
            if run:
                run.log(loop.step, metrics)
        if bar:
            bar.update(loop.step, _score(metrics))
        if callback:
            callback({"step": loop.step, **metrics})
        if failure or _due(before, loop.step, steps, schedule.checkpoint):
            save()
        if failure:
            raise failure
    if stop:
        save()


def _score(metrics: Metrics) -> float | None:
    """What the progress bar shows."""
    score = np.mean(metrics.get("eval/return", metrics.get("episode/return", np.nan)))
    return float(score) if np.isfinite(score) else None


# Evaluation uses other random numbers than training and tuning: seeds far from those that people type.
EVALUATION_SEED = 1_000_003


def _due(before: int, now: int, total: int, every: int) -> bool:
    """Whether a multiple of `every` was passed, or the end reached."""
    return now >= total or (every > 0 and now // every > before // every)


def _save(run: Run, loop: Loop) -> None:
    bad = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(loop.agent)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all()
    ]
    if bad:
        raise OffroadError(f"{bad[0]} of the agent became NaN or infinite at step {loop.step}; {_mend(run)}")
    run.save(loop.step, loop.state())


def _require_finite(metrics: Metrics, step: int, run: Run | None) -> None:
    bad = [repr(name) for name, value in metrics.items() if not np.isfinite(np.asarray(value)).all()]
    if bad:
        raise OffroadError(f"{', '.join(bad)} became NaN or infinite before step {step}; {_mend(run)}")


def _mend(run: Run | None) -> str:
    return f"{_kept(run)}; lower the learning rate or check the rewards' scale"


def _kept(run: Run | None) -> str:
    if run is None:
        return "nothing was saved, as the run has no folder (out)"
    last = checkpoint.latest(run.path / "checkpoints")
    return f"the last good checkpoint is {str(last)!r}" if last else "no checkpoint was due before"


def _plain(value: Any) -> float | list[float]:
    array = np.asarray(value, np.float64)
    return float(array) if array.ndim == 0 else array.tolist()


def one_seed(seed: int | Sequence[int]) -> int:
    """The seed of a loop that trains one agent at a time."""
    if isinstance(seed, int):
        return seed
    raise OffroadError(
        f"several seeds {list(seed)} train side by side only on environments written in JAX; "
        "call the trainer once for each seed"
    )


def describe(
    trainer: str, agent: Any, env: VectorEnv | None, seed: int | Sequence[int], **options: Any
) -> dict[str, Any]:
    """What `config.json` records: enough to rebuild agent and environment.

    Without the number of steps: a run may be resumed to train for longer.
    """
    found: dict[str, Any] = {
        "trainer": trainer,
        "agent": name_of_agent(agent),
        "agent_config": configuration.to_json(agent.config),
        "seed": seed if isinstance(seed, int) else list(seed),
        **options,
    }
    if isinstance(agent, Agent):
        found["spaces"] = agent.spaces.to_json()
    if env is not None:
        kwargs = env.spec.kwargs if env.spec else {}
        found |= {"env": {"id": name_of(env), "kwargs": _as_json(_of_one(kwargs))}, "num_envs": env.num_envs}
    return found


def name_of_agent(agent: Any) -> str:
    """The name by which the command line knows the agent; of others that of their class."""
    return next((name for name, (kind, _) in AGENTS.items() if type(agent) is kind), type(agent).__name__.lower())


def _of_one(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the environment itself: without those that say how copies of it become a vector."""
    of_the_vector = {"num_envs", "vectorization_mode", "vector_kwargs", "autoreset_mode"}
    return {name: value for name, value in kwargs.items() if name not in of_the_vector}


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments that an environment was made with; what JSON does not know, such as a class, by its name."""

    def named(value: Any) -> Any:
        return value.value if isinstance(value, Enum) else getattr(value, "__qualname__", type(value).__qualname__)

    return json.loads(json.dumps(strict(options), default=named))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM ask the loop to save and stop after the present chunk; a second one interrupts at once."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: leave signals to whoever owns it
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
