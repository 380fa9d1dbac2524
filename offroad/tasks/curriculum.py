"""Curricula: which task every new episode sets, for any environment that chooses its tasks by `reset(options=...)`.

```python
stages = [
    Stage("near", {"blocks": 1, "distance": Uniform(0.02, 0.1)}),
    Stage("one block", {"blocks": 1}),
    Stage("two blocks", [(0.7, {"blocks": 2}), (0.3, {"blocks": 2, "built": 1})]),
]
env = CurriculumVectorEnv(env, SuccessGated(stages))
```

How many objects there are, how far the goal is and what an episode starts from (a tower half built): all are options.
N is the number of worlds of a vector environment.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from jaxtyping import Bool

from offroad.errors import OffroadError
from offroad.tasks.batches import copied, merge, only, overwrite

Options = dict[str, Any]
"""Options of `reset`, as keyword to value."""

NOTE = "curriculum"
"""The entry of sampled options that is the curriculum's own: handed back in `record`, kept from the environment."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Curriculum(Protocol):
    """Chooses the reset options of every new episode, and is told how the episode ended."""

    def sample(self, random: np.random.Generator) -> Options:
        """The options of one new episode; an entry `"curriculum"` (numbers, strings) comes back in `record`."""
        ...

    def record(self, options: Mapping[str, Any], success: bool, graded: bool) -> None:
        """An episode that `sample` gave these options has ended; `graded` if it was acted without exploration."""
        ...

    def metrics(self) -> dict[str, float]: ...

    def get_state(self) -> dict[str, Any]:
        """All that the future depends on, as nested dicts and lists of arrays, numbers and strings."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Uniform:
    """In place of an option's value: a number drawn from `[low, high)` for every episode."""

    low: float | int
    high: float | int

    def __post_init__(self):
        if not self.low <= self.high:
            raise OffroadError(
                f"Uniform({self.low}, {self.high}) has its bounds out of order; pass the lower one first"
            )


@dataclass(frozen=True)
class Stage:
    """One step of a curriculum: a name and what its episodes are.

    **Arguments:**

    - `options`: reset options, or several sets of them with weights, `[(0.7, {...}), (0.3, {...})]`, of which every
        episode draws one. Values that are `Uniform` are drawn for every episode.
    """

    name: str
    options: Mapping[str, Any] | Sequence[tuple[float | int, Mapping[str, Any]]]

    def __post_init__(self):
        weights = self._weights()
        if not len(weights) or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise OffroadError(
                f"stage {self.name!r} has option sets with the weights {weights.tolist()}; "
                "expected at least one set, weights of at least 0 and one above it"
            )

    def sample(self, random: np.random.Generator) -> Options:
        chosen = self.options
        if not isinstance(chosen, Mapping):
            weights = self._weights()
            chosen = chosen[random.choice(len(weights), p=weights / weights.sum())][1]
        return {
            name: random.uniform(value.low, value.high) if isinstance(value, Uniform) else value
            for name, value in chosen.items()
        }

    def _weights(self) -> np.ndarray:
        return np.ones(1) if isinstance(self.options, Mapping) else np.array([w for w, _ in self.options], float)


class SuccessGated:
    """Works on one stage until it is mastered, then on the next; goes back when what was mastered is lost.

    Two success rates are kept, each over the last `window` graded episodes that began since the last change of stage:
    one above `promote` on the present stage leads to the next, one below `demote` on rehearsals of earlier stages leads
    to the one before. That a new stage is hard at first sends nobody back.

    Attributes: `stage` (index), `episodes` (that ended, graded or not), and `history`, a list of one dictionary for
    each change: after which `episode`, `from` and `to` which stage (indices), at what `success`.

    **Arguments:**

    - `stages`: from the easiest to the hardest.
    - `promote`, `demote`: success rates.
    - `window`: the number of episodes they are measured over.
    - `rehearsal`: the share of episodes that are of an earlier stage (any, uniformly), against forgetting.
    - `on_change`: called at every change of stage. Li et al. (2020) empty the replay buffer then (`replay.clear`): full
        of the stage before, it would be slow to tell of the new one.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        promote: float | int = 0.8,
        demote: float | int = 0.3,
        window: int = 100,
        rehearsal: float | int = 0.2,
        on_change: Callable[[], None] | None = None,
    ):
        if not stages:
            raise OffroadError("a curriculum was given no stages; pass at least one Stage(name, options)")
        if not 0 <= demote < promote < 1:
            raise OffroadError(
                f"a curriculum has promote={promote} and demote={demote}; expected 0 <= demote < promote < 1"
            )
        if window < 1 or not 0 <= rehearsal < 1:
            raise OffroadError(
                f"a curriculum has window={window} and rehearsal={rehearsal}; "
                "expected a window of at least 1 and a rehearsal of at least 0 and below 1"
            )
        self.stages = tuple(stages)
        self.promote, self.demote, self.window, self.rehearsal = promote, demote, window, rehearsal
        self.on_change = on_change
        self.stage = self.episodes = 0
        self.history: list[dict[str, Any]] = []
        self._present: deque[bool] = deque(maxlen=window)
        self._rehearsed: deque[bool] = deque(maxlen=window)

    def sample(self, random: np.random.Generator) -> Options:
        rehearsed = self.stage > 0 and random.random() < self.rehearsal
        stage = int(random.integers(self.stage)) if rehearsed else self.stage
        return {**self.stages[stage].sample(random), NOTE: (len(self.history), stage)}

    def record(self, options: Mapping[str, Any], success: bool, graded: bool) -> None:
        self.episodes += 1
        changes, stage = options[NOTE]
        if not graded or changes != len(self.history):
            return
        results = self._present if stage == self.stage else self._rehearsed
        results.append(success)
        if len(results) < self.window:
            return
        rate = sum(results) / self.window
        if stage == self.stage and rate > self.promote and self.stage + 1 < len(self.stages):
            self._move(self.stage + 1, rate)
        elif stage < self.stage and rate < self.demote:
            self._move(self.stage - 1, rate)

    def metrics(self) -> dict[str, float]:
        """The stage (from 0), the number of promotions, and the success rates, where episodes have counted yet."""
        metrics = {
            "curriculum/stage": float(self.stage),
            "curriculum/promotions": float(sum(change["to"] > change["from"] for change in self.history)),
        }
        for name, results in (("success", self._present), ("rehearsal", self._rehearsed)):
            if results:
                metrics[f"curriculum/{name}"] = sum(results) / len(results)
        return metrics

    def get_state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "episodes": self.episodes,
            "history": [dict(change) for change in self.history],
            "present": list(self._present),
            "rehearsed": list(self._rehearsed),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state["stage"] >= len(self.stages) or len(state["present"]) > self.window:
            raise OffroadError(
                f"a saved curriculum at stage {state['stage']} with {len(state['present'])} episodes in its window "
                f"does not fit one of {len(self.stages)} stages and a window of {self.window}; "
                "create it as that one was"
            )
        self.stage, self.episodes = state["stage"], state["episodes"]
        self.history = [dict(change) for change in state["history"]]
        self._present = deque(state["present"], maxlen=self.window)
        self._rehearsed = deque(state["rehearsed"], maxlen=self.window)

    def _move(self, stage: int, rate: float) -> None:
        verb, names = "promoted" if stage > self.stage else "demoted", [s.name for s in self.stages]
        logger.info(
            f"{verb} from stage {names[self.stage]!r} to {names[stage]!r} after {self.episodes} episodes, "
            f"the last {self.window} graded ones with a success of {rate:.2f}"
        )
        self.history.append({"episode": self.episodes, "from": self.stage, "to": stage, "success": rate})
        self.stage = stage
        self._present.clear()
        self._rehearsed.clear()
        if self.on_change is not None:
            self.on_change()


class CurriculumVectorEnv(VectorWrapper):
    """Gives every new episode of a vector environment the reset options that a curriculum chooses.

    It resets finished worlds itself, in the step that finishes them (SAME_STEP autoreset, with `final_obs` and
    `final_info` as Gymnasium's own environments give them), by `env.reset(options={"reset_mask": ..., **options})`.
    Worlds that are given equal options share a call; those with options that are drawn from a continuum or hold arrays
    take one each.

    **Arguments:**

    - `env`: a vector environment whose autoreset is disabled.
    - `curriculum`: see `Curriculum`; it is at `env.curriculum` during and after training.
    - `seed`: of the tasks drawn until a `reset(seed=...)` gives another.
    - `success`: how a finished episode's success is found: the key of an entry `[N]` in `info`, or a function
        `(observation, info) -> bool [N]` of the final step's batch.
    - `deterministic_envs`: only episodes of the first so many worlds are graded, and the off-policy trainer acts in
        those without exploration. 0 grades all: for trainers that explore everywhere.

    Raises `OffroadError` for an environment that resets itself, when no world would explore, for options given to
    `reset`, and when an episode ends without telling its success.
    """

    def __init__(
        self,
        env: VectorEnv,
        curriculum: Curriculum,
        *,
        seed: int = 0,
        success: str | Callable[[Any, dict[str, Any]], Any] = "success",
        deterministic_envs: int = 8,
    ):
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise OffroadError(
                f"a curriculum was given an environment with autoreset_mode {getattr(mode, 'name', mode)}, which "
                "starts episodes without the curriculum's options; make it with autoreset_mode=AutoresetMode.DISABLED"
            )
        if not 0 <= deterministic_envs < env.num_envs:
            raise OffroadError(
                f"deterministic_envs is {deterministic_envs}, expected at least 0 and fewer than the {env.num_envs} "
                "worlds, as the others explore; pass 0 to grade the episodes of all"
            )
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.curriculum = curriculum
        self.deterministic_envs = deterministic_envs
        self._success = success
        self._random = _generator(seed)
        self._options: list[Options] = [{}] * env.num_envs  # of the present episodes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes in all worlds; those under way are not recorded."""
        if options:
            raise OffroadError(
                f"reset() of an environment with a curriculum was given the options {sorted(options)}; "
                "leave them to the curriculum, or reset the environment inside it (`env.env`)"
            )
        if seed is not None:
            self._random = _generator(seed if isinstance(seed, int | np.integer) else [s or 0 for s in seed])
        return self._begin(np.ones(self.num_envs, bool), None, seed)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = terminated | truncated
        if not ended.any():
            return observation, reward, terminated, truncated, info

        success = self._successes(observation, info, ended)
        final = np.full(self.num_envs, None, dtype=object)
        for world in np.flatnonzero(ended).tolist():
            graded = self.deterministic_envs == 0 or world < self.deterministic_envs
            self.curriculum.record(self._options[world], bool(success[world]), graded)
            final[world] = copied(observation, world)

        final_info, info = only(info, ended), only(info, ~ended)
        info |= {"final_obs": final, "_final_obs": ended, "final_info": final_info, "_final_info": ended.copy()}
        observation, reset_info = self._begin(ended, observation, None)
        merge(info, reset_info)
        return observation, reward, terminated, truncated, info

    def metrics(self) -> dict[str, float]:
        return self.curriculum.metrics()

    def get_state(self) -> dict[str, Any] | None:
        """All that the future depends on, None if the state of the environment inside cannot be had."""
        if not hasattr(type(self.env), "get_state"):
            return None
        return {
            "env": self.env.get_state(),  # pyright: ignore[reportAttributeAccessIssue]
            "curriculum": self.curriculum.get_state(),
            "random": self._random.bit_generator.state,
            "options": list(self._options),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues, to the bit, where an environment with the same arguments was when `get_state` was called."""
        self.env.set_state(state["env"])  # pyright: ignore[reportAttributeAccessIssue]
        self.curriculum.set_state(state["curriculum"])
        self._random.bit_generator.state = state["random"]
        self._options = list(state["options"])

    def _successes(self, observation: Any, info: dict[str, Any], ended: Bool[np.ndarray, " N"]) -> np.ndarray:
        name = self._success
        if callable(name):
            found = np.asarray(name(observation, info))
        elif name in info and np.asarray(info.get(f"_{name}", True) | ~ended).all():
            found = np.asarray(info[name])
        else:
            raise OffroadError(
                f"an episode ended in world {int(np.flatnonzero(ended)[0])} and its info has no {name!r}, only "
                f"{sorted(key for key in info if not key.startswith('_'))}; "
                "pass success=... with the right key or a function of observation and info"
            )
        if found.shape != ended.shape:
            raise OffroadError(
                f"the success of episodes has shape {found.shape}, expected {ended.shape}: a truth value for each world"
            )
        return found.astype(bool)

    def _begin(
        self, which: Bool[np.ndarray, " N"], observation: Any, seed: int | Sequence[int | None] | None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts episodes where `which`: the observation with their rows replaced, and their info alone.

        Without an observation there is none yet, and the first call resets all worlds: Gymnasium's own environments
        cannot start with some of them.
        """
        groups: dict[Hashable, list[int]] = {}
        for world in np.flatnonzero(which).tolist():
            self._options[world] = self.curriculum.sample(self._random)
            groups.setdefault(_identity(self._options[world], world), []).append(world)
        observation = None if observation is None else copied(observation)
        info: dict[str, Any] = {}
        for worlds in groups.values():
            mask = np.zeros(self.num_envs, bool)
            mask[worlds] = True
            options = {name: value for name, value in self._options[worlds[0]].items() if name != NOTE}
            first = observation is None
            options["reset_mask"] = np.ones_like(mask) if first else mask.copy()
            new, new_info = self.env.reset(seed=seed if first else None, options=options)  # pyright: ignore
            if first:
                observation = copied(new)
            else:
                overwrite(observation, new, mask)
            merge(info, only(new_info, mask))
        return observation, info


def _generator(seed: Any) -> np.random.Generator:
    """Independent of the worlds' own generators, which are seeded with the same numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))


def _identity(options: Options, world: int) -> Hashable:
    """What worlds with equal options have in common; with options that cannot be hashed, every world its own."""
    try:
        return frozenset((name, value) for name, value in options.items() if name != NOTE)
    except TypeError:
        return world
