"""Tasks with goals, and learning from what was reached instead (hindsight experience replay, arXiv 1707.01495).

Shapes: T steps of N copies of an environment; a goal is a vector `[g]`, or one vector for each of n entities, `[n, g]`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import gymnasium as gym
import jax
import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Int, PyTree

from offroad.data.replay import Replay
from offroad.data.transitions import Transition
from offroad.errors import OffroadError, unknown

Observation: TypeAlias = PyTree[np.ndarray]
STRATEGIES = "future", "final", "episode"


@dataclass(frozen=True)
class GoalTask:
    """What hindsight must know of a task: three NumPy functions of observations with any leading axes.

    **Fields:**

    - `achieved(observation) -> goal`: the goal that this observation reaches, `[..., g]` or `[..., n, g]`.
    - `relabel(observation, goal) -> observation`: a new observation with this goal in place of its own. Entries without
        the goal are passed on as they are (the same arrays), and are not written to.
    - `reward(next_observation) -> [...]`: what a step to this observation, which tells its goal, is worth (float32).
    """

    achieved: Callable[[Observation], np.ndarray]
    relabel: Callable[[Observation, np.ndarray], Observation]
    reward: Callable[[Observation], np.ndarray]

    @classmethod
    def of(cls, env: gym.Env | VectorEnv) -> "GoalTask":
        """The task of an environment that has the attribute `goal_task`, or that follows one of two conventions.

        Of entities: a Dict with `objects` `[n, d]` and `goals` `[n, g]`, where the first g features of an object are
        what it has achieved, and a method `compute_reward(observation)` for any leading axes. Gymnasium-Robotics's:
        a Dict with `achieved_goal` and `desired_goal` and has a method
        `compute_reward(achieved, desired, info)` that takes batches `[B, g]`; `info` is empty here. Raises
        `OffroadError` for all other environments.
        """
        if isinstance(task := getattr(env.unwrapped, "goal_task", None), GoalTask):
            return task
        space = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
        names = ("achieved_goal", "desired_goal")
        spaces = space.spaces if isinstance(space, gym.spaces.Dict) else {}
        compute_reward = getattr(_one_of(env), "compute_reward", None)
        if compute_reward is not None and {"objects", "goals"} <= spaces.keys():
            size = (spaces["goals"].shape or (0,))[-1]
            return cls(
                lambda observation: observation["objects"][..., :size],
                lambda observation, goal: {**observation, "goals": goal},
                compute_reward,
            )
        if compute_reward is None or not all(name in spaces for name in names):
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            raise OffroadError(
                f"environment {name!r} tells no goals; give it an attribute goal_task (an offroad.tasks.GoalTask), or "
                "a method compute_reward and observations with objects and goals or achieved_goal and desired_goal"
            )
        shape = spaces["desired_goal"].shape or ()

        def reward(observation: Observation) -> np.ndarray:
            achieved, desired = (np.asarray(observation[name]) for name in names)
            leading = achieved.shape[: achieved.ndim - len(shape)]
            rewards = np.asarray(compute_reward(achieved.reshape(-1, *shape), desired.reshape(-1, *shape), {}))
            if rewards.size != np.prod(leading):
                raise OffroadError(
                    f"compute_reward gave rewards of shape {rewards.shape} for {int(np.prod(leading))} goals, expected "
                    "one for each; compute it along the last axis of achieved and desired"
                )
            return rewards.reshape(leading).astype(np.float32)

        return cls(
            lambda observation: observation["achieved_goal"],
            lambda observation, goal: {**observation, "desired_goal": goal},
            reward,
        )


def _one_of(env: gym.Env | VectorEnv) -> Any:
    """What computes rewards: the environment, or of a vector made of single ones, one like its first copy."""
    bare = env.unwrapped
    if isinstance(bare, gym.vector.SyncVectorEnv):
        return bare.envs[0].unwrapped
    return bare.env_fns[0]().unwrapped if isinstance(bare, gym.vector.AsyncVectorEnv) else bare


class HindsightReplay(Replay):
    """A replay whose samples pretend, in part, that what was reached later in the episode had been the goal.

    Transitions are kept as they were; goals are drawn anew for every sample. With probability `share` a sample's goal
    becomes what the episode achieved at another step (after its action), and its reward is computed for that goal;
    `terminated` stays as it was. The step is drawn among those of the episode that are still stored, by `strategy`:
    "future" from the sampled step on, "final" the last one so far, "episode" any.

    Where goals belong to entities (`[n, g]`) and `per_entity` is on, every entity is relabelled by itself: whether and
    to which step is drawn for each. One sample then mixes wishes and outcomes of several moments, so that few steps
    teach many arrangements; for this the entries of the observation that tell goals must be `[n, ...]`, too.

    `moved_share` of the samples come from episodes in which a goal vector that was achieved went farther than
    `moved_distance` (in its units) from where it was at the start: what is never touched teaches little. Until there
    is such an episode all samples are drawn uniformly.

    **Arguments:** `capacity`: in transitions; rounded down to whole rows of N at the first `add`. `task`: see
    `GoalTask`. The others are described above.
    """

    def __init__(
        self,
        capacity: int,
        task: GoalTask,
        *,
        strategy: str = "future",
        share: float | int = 0.8,
        per_entity: bool = True,
        moved_share: float | int = 0.0,
        moved_distance: float | int = 0.03,
    ):
        super().__init__(capacity)
        if strategy not in STRATEGIES:
            raise unknown("hindsight strategy", strategy, STRATEGIES)
        for name, value in (("share", share), ("moved_share", moved_share)):
            if not 0 <= value <= 1:
                raise OffroadError(f"the {name} of a HindsightReplay is {value}, expected a number from 0 to 1")
        self.task, self.strategy, self.share, self.per_entity = task, strategy, share, per_entity
        self.moved_share, self.moved_distance = moved_share, moved_distance

    # The ring of `Replay` holds whole rows of N cells, one for each copy, with the steps that were none. `_episode`
    # tells the episode of a cell, or -1 for no step; `_first`, `_last` and `_moved` tell of an episode the rows
    # (counted from the very first) where it began and where it ends so far, and whether something moved. A column of
    # R rows never holds more than R episodes, so that episode e of copy i is kept at place `e % R * N + i`.

    def __len__(self) -> int:
        return self._steps if self._added else 0

    def add(self, transitions: Transition, mask: Bool[np.ndarray, "T N"] | None = None) -> None:
        """Adds a rollout: leaves `[T, N, ...]`, whose steps count where `mask` is True.

        A copy's episode goes on from the rollout before if it did not end there and its observation is still the one
        that the last step led to.
        """
        new = jax.tree.map(np.asarray, transitions)
        steps, copies = new.reward.shape
        kept = np.ones((steps, copies), bool) if mask is None else mask
        if self._added and copies != self._copies:
            raise OffroadError(
                f"a rollout of {copies} copies does not fit a HindsightReplay of {self._copies}, as episodes could "
                "not be told apart; use one replay for each environment"
            )
        if not self._added:
            self._allocate(copies, self.task.achieved(jax.tree.map(lambda x: x[:1], new.next_observation)))
        for start in range(0, steps, self._rows):
            part = slice(start, start + self._rows)
            self._add_rows(jax.tree.map(lambda x: x[part], new), kept[part])  # noqa: B023

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        """Relabelled transitions, drawn with replacement, with leading axes `shape`."""
        if not len(self):
            raise OffroadError("the replay is empty; add transitions before sampling from it")
        cells = self._draw(rng, int(np.prod(shape)))
        batch = self._relabel(rng, cells, jax.tree.map(lambda ring: ring.take(cells, axis=0), self._ring))
        leading = (shape,) if isinstance(shape, int) else shape
        return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), batch)

    def describe(self) -> dict[str, Any]:
        settings = "strategy", "share", "per_entity", "moved_share", "moved_distance"
        return {**super().describe(), **{name: getattr(self, name) for name in settings}}

    def get_state(self) -> dict[str, Any]:
        state = super().get_state()
        if not self._added:
            return state
        filled = self._filled
        return {
            **state,
            "episode": self._episode[:filled],
            "first": self._first[:filled],
            "last": self._last[:filled],
            "moved": self._moved[:filled],
            "episodes": self._episodes.copy(),
            "origin": self._origin.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if state["added"] and "episode" not in state:
            raise OffroadError(
                "a saved replay knows no episodes, so it is no HindsightReplay's; use the one of its run"
            )
        if not state["added"]:
            return super().set_state(state)
        achieved = self.task.achieved(state["ring"]["next_observation"])
        self._allocate(len(state["episodes"]), achieved[None])
        super().set_state(state)
        filled = self._filled
        self._achieved[:filled] = achieved
        for name in ("episode", "first", "last", "moved"):
            getattr(self, f"_{name}")[:filled] = state[name]
        self._episodes, self._origin = state["episodes"].copy(), state["origin"].copy()
        self._steps = int(np.count_nonzero(self._episode >= 0))

    def _allocate(self, copies: int, achieved: np.ndarray) -> None:
        """Empty arrays, for achieved goals like these `[T, N, ...]`."""
        self._copies, self._rows = copies, self.capacity // copies
        if not self._rows:
            raise OffroadError(
                f"a capacity of {self.capacity} is less than one step of {copies} environments; raise the capacity"
            )
        if achieved.ndim not in (3, 4):
            raise OffroadError(
                f"the achieved goal of one observation has shape {achieved.shape[2:]}, expected [g], or [n, g] with "
                "one vector for each entity"
            )
        self.capacity = self._rows * copies
        self._achieved = np.zeros((self.capacity, *achieved.shape[2:]), achieved.dtype)
        self._episode = np.full(self.capacity, -1)
        self._first, self._last = np.zeros(self.capacity, int), np.zeros(self.capacity, int)
        self._moved = np.zeros(self.capacity, bool)
        self._episodes = np.zeros(copies, int)  # begun so far
        self._origin = np.zeros((copies, *achieved.shape[2:]), achieved.dtype)  # achieved as the present ones began
        self._steps = 0
        self._moved_cells: np.ndarray | None = None  # made when needed

    def _add_rows(self, new: Transition, kept: Bool[np.ndarray, "T N"]) -> None:
        """Adds at most as many rows as the ring has."""
        before, achieved = self.task.achieved(new.observation), self.task.achieved(new.next_observation)
        goes_on = np.concatenate([self._goes_on(new)[None], (kept & ~new.terminated & ~new.truncated)[:-1]])
        begins = kept & ~goes_on
        steps = np.arange(len(kept))
        rows = self._added // self._copies + steps
        cells = (rows % self._rows)[:, None] * self._copies + np.arange(self._copies)
        number = self._episodes + np.cumsum(begins, axis=0) - 1
        places = number % self._rows * self._copies + np.arange(self._copies)

        since = np.maximum.accumulate(np.where(begins, steps[:, None], -1), axis=0)  # -1: from an earlier rollout
        origins = np.concatenate([self._origin[None], before])[since + 1, np.arange(self._copies)]
        moved = np.linalg.norm(achieved - origins, axis=-1) > self.moved_distance
        moved = kept & moved.reshape(*kept.shape, -1).any(axis=-1)

        row = np.broadcast_to(rows[:, None], kept.shape)
        self._first[places[begins]], self._moved[places[begins]] = row[begins], False
        self._last[places[kept]] = row[kept]  # the last of an episode's steps stays
        self._moved[places[moved]] = True
        self._steps += int(np.sum(kept)) - int(np.sum(self._episode[cells] >= 0))
        self._episode[cells] = np.where(kept, places, -1)
        self._achieved[cells] = achieved
        self._episodes, self._origin, self._moved_cells = number[-1] + 1, origins[-1], None
        super().add(new)

    def _goes_on(self, new: Transition) -> Bool[np.ndarray, " N"]:
        """Which copies are in the episode of their last stored step: it did not end, and `new` starts where it led."""
        if not self._added:
            return np.zeros(self._copies, bool)
        end = (self._added - 1) % self.capacity + 1
        last = jax.tree.map(lambda ring: ring[end - self._copies : end], self._ring)
        goes_on = (self._episode[end - self._copies : end] >= 0) & ~last.terminated & ~last.truncated
        for led_to, shown in zip(jax.tree.leaves(last.next_observation), jax.tree.leaves(new.observation), strict=True):
            goes_on &= (led_to == shown[0]).reshape(self._copies, -1).all(axis=1)
        return goes_on

    def _draw(self, rng: np.random.Generator, n: int) -> Int[np.ndarray, " n"]:
        """The cells of `n` samples."""
        cells = rng.integers(self._filled, size=n)
        while len(none := np.flatnonzero(self._episode[cells] < 0)):
            cells[none] = rng.integers(self._filled, size=len(none))
        if self.moved_share:
            if self._moved_cells is None:
                self._moved_cells = np.flatnonzero(self._moved[self._episode] & (self._episode >= 0))
            if len(self._moved_cells):
                instead = np.flatnonzero(rng.random(n) < self.moved_share)
                cells[instead] = self._moved_cells[rng.integers(len(self._moved_cells), size=len(instead))]
        return cells

    def _relabel(self, rng: np.random.Generator, cells: Int[np.ndarray, " n"], batch: Transition) -> Transition:
        """Writes goals of hindsight into the freshly gathered `batch` of `cells`."""
        entities = self._achieved.shape[1:-1] if self.per_entity else ()
        shape = (len(cells), *entities)
        chosen = rng.random(shape) < self.share

        episode, copy = self._episode[cells], cells % self._copies
        newest, last = self._added // self._copies - 1, self._last[episode]
        if self.strategy == "future":
            earliest = newest - (newest - cells // self._copies) % self._rows  # the row of the sample itself
        elif self.strategy == "final":
            earliest = last
        else:
            earliest = np.maximum(self._first[episode], newest - self._rows + 1)
        along = (slice(None), *(None,) * len(entities))
        rows = rng.integers(earliest[along], last[along] + 1, shape)
        sources = rows % self._rows * self._copies + copy[along]
        if entities:  # every entity's own row
            sources = sources * entities[0] + np.arange(entities[0])
        goal = self._achieved.reshape(-1, *self._achieved.shape[1 + len(entities) :]).take(sources, axis=0)

        for observation in (batch.observation, batch.next_observation):
            relabelled = self.task.relabel(observation, goal)
            jax.tree.map(lambda old, new: old is new or _put(old, new, chosen), observation, relabelled)
        changed = chosen.any(axis=tuple(range(1, chosen.ndim)))
        reward = np.where(changed, self.task.reward(batch.next_observation), batch.reward)
        return replace(batch, reward=reward.astype(batch.reward.dtype))


def _put(old: np.ndarray, new: np.ndarray, chosen: np.ndarray) -> None:
    """`old[chosen] = new[chosen]`, where `chosen` has the first axes of both."""
    if old.shape[: chosen.ndim] != chosen.shape:
        raise OffroadError(
            f"relabelling each of {chosen.shape[1]} entities by itself changed an entry of shape {old.shape[1:]}, not "
            "with a row for each; pass per_entity=False, or let relabel pass on the entries without goals untouched"
        )
    np.copyto(old, new, where=chosen.reshape(chosen.shape + (1,) * (old.ndim - chosen.ndim)), casting="same_kind")
