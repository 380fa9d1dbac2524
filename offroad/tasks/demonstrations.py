"""Demonstrations: episodes of a demonstrator as arrays, and a replay that mixes them into every batch.

```python
shown = Demonstrations.load("demonstrations.npz", Spaces.of(env))
apart = HindsightReplay(100_000, task)  # or Replay: demonstrations are sampled as that replay samples
shown.fill(apart)
replay = DemonstrationReplay(HindsightReplay(1_000_000, task), apart)
agent = DDPG.create(Spaces.of(env), DDPGConfig(imitation=Imitation()), key)
train.off_policy(agent, env, steps, replay=replay)
```
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Bool, Int

from offroad.data.replay import Replay
from offroad.data.spaces import Spaces
from offroad.data.transitions import Transition
from offroad.errors import OffroadError
from offroad.tasks.entities import CompactReplay

State = dict[str, Any]
"""A simulator's state: a (nested) dict of arrays and numbers, what `reset(options={"state": ...})` takes."""


OPTIONAL = {"demonstrated", "next_action"}
"""Fields of a transition that demonstrations do without."""


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes one after another.

    `transitions` has leaves `[steps, ...]`, `lengths` the steps of each episode. `states`, where the simulator's state
    is known, holds for each episode a dict of arrays `[length, ...]`: the state before each step.
    """

    transitions: Transition
    lengths: Int[np.ndarray, " episodes"]
    states: tuple[State, ...] | None = None

    def __post_init__(self):
        steps = int(self.lengths.sum())
        for name, array in _flatten(_fields(self.transitions)).items():
            if len(array) != steps:
                raise OffroadError(
                    f"demonstrations of {len(self.lengths)} episodes and {steps} steps have an array {name!r} of "
                    f"shape {array.shape}; expected one row for each step"
                )
        lengths = self.lengths.tolist()
        if self.states is not None and [_length(state) for state in self.states] != lengths:
            raise OffroadError(
                f"demonstrations of episodes of {lengths} steps have states for "
                f"{[_length(state) for state in self.states]} steps; expected one for each step"
            )

    @classmethod
    def of_rollout(
        cls,
        transitions: Transition,
        mask: Bool[np.ndarray, "T N"] | None = None,
        *,
        keep: Bool[np.ndarray, "T N"] | None = None,
        states: Sequence[Sequence[State]] | None = None,
    ) -> "Demonstrations":
        """Cuts `T` consecutive steps of `N` environments, leaves `[T, N, ...]`, into the episodes that ended in them.

        Every environment's first step must begin an episode.

        **Arguments:** `mask`: False for steps that were none. `keep`: an episode is left out where this is False at
        its last step (for example: success). `states[t][n]`: the state of environment `n` before step `t`; its arrays
        must have equal shapes within an episode.
        """
        # 64-bit numbers become what JAX computes with, as in what is collected.
        new = jax.tree.map(lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)), transitions)
        valid: np.ndarray = np.ones(new.reward.shape, bool) if mask is None else mask
        episodes: list[tuple[np.ndarray, int]] = []  # steps and environment of each
        for copy in range(valid.shape[1]):
            steps = np.flatnonzero(valid[:, copy])
            ends = np.flatnonzero((new.terminated | new.truncated)[steps, copy]) + 1
            for episode in np.split(steps, ends)[: len(ends)]:
                if keep is None or keep[episode[-1], copy]:
                    episodes.append((episode, copy))
        if not episodes:
            raise OffroadError(
                f"no episode ended in {valid.shape[0]} steps of {valid.shape[1]} environments, or none is to be kept; "
                "record longer or look at the demonstrator"
            )
        rows = np.concatenate([steps for steps, _ in episodes])
        copies = np.concatenate([np.full(len(steps), copy) for steps, copy in episodes])
        found = None
        if states is not None:
            found = tuple(jax.tree.map(_stack, *(states[t][copy] for t in steps)) for steps, copy in episodes)
        lengths = np.array([len(steps) for steps, _ in episodes])
        return cls(jax.tree.map(lambda x: x[rows, copies], new), lengths, found)

    def first(self, episodes: int) -> "Demonstrations":
        """The first so many episodes."""
        lengths = self.lengths[:episodes]
        steps = int(lengths.sum())
        states = None if self.states is None else self.states[:episodes]
        return Demonstrations(jax.tree.map(lambda x: x[:steps], self.transitions), lengths, states)

    def save(self, path: str | Path) -> None:
        """Writes a NumPy archive (.npz) of plain arrays named like `observation/objects`."""
        arrays = {"lengths": self.lengths, **_flatten(_fields(self.transitions))}
        for episode, state in enumerate(self.states or ()):
            arrays |= _flatten({"states": {str(episode): state}})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:  # given a name, NumPy would append .npz to others
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path, spaces: Spaces | None = None) -> "Demonstrations":
        """The inverse of `save`; with `spaces` also checks that they are of this environment."""
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = _nest({name: file[name] for name in file.files})
        except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise OffroadError(
                f"demonstrations {str(path)!r} cannot be read ({error}); expected a file written by Demonstrations.save"
            ) from error
        lengths, states = parts.pop("lengths", None), parts.pop("states", None)
        needed = {field.name for field in fields(Transition)} - OPTIONAL
        if lengths is None or parts.keys() != needed:
            raise OffroadError(
                f"demonstrations {str(path)!r} hold {sorted(parts)}; expected lengths and {sorted(needed)}, "
                "as written by Demonstrations.save"
            )
        if states is not None:
            states = tuple(states[str(episode)] for episode in range(len(states)))
        demonstrations = cls(Transition(**parts), lengths, states)
        if spaces is not None:
            demonstrations.check(spaces)
        return demonstrations

    def check(self, spaces: Spaces) -> None:
        """Raises `OffroadError`, naming the array and both shapes, if observations or actions are not of `spaces`."""
        found = _fields(self.transitions)
        for field, space in (
            ("observation", spaces.observation),
            ("next_observation", spaces.observation),
            ("action", spaces.action),
        ):
            shapes = {name: array.shape[1:] for name, array in _flatten({field: found[field]}).items()}
            expected = _shapes(field, space)
            for name in sorted(shapes.keys() | expected.keys()):
                if shapes.get(name) != expected.get(name):
                    raise OffroadError(
                        f"demonstrations have for {name!r} {_described(shapes.get(name))}, the environment has "
                        f"{_described(expected.get(name))}; use demonstrations of this environment"
                    )

    def fill(self, replay: Replay) -> None:
        """Adds all episodes to a replay, each as a rollout `[length, 1]`."""
        if (steps := int(self.lengths.sum())) > replay.capacity:
            raise OffroadError(
                f"{steps} steps of demonstrations do not fit a replay of capacity {replay.capacity}; raise the capacity"
            )
        for start, length in zip(np.cumsum(self.lengths) - self.lengths, self.lengths):
            part = slice(start, start + length)
            episode = jax.tree.map(lambda x: x[part, None], self.transitions)  # noqa: B023
            replay.add(episode, np.ones((length, 1), bool))

    def sample_state(self, random: np.random.Generator) -> State:
        """The simulator's state before a random step of a random episode, for `reset(options={"state": ...})`.

        Starting there, the goal is near enough for a beginner (Nair et al. 2018).
        """
        if self.states is None:
            raise OffroadError("these demonstrations hold no states of the simulator; record them with states")
        episode = int(random.integers(len(self.lengths)))
        step = int(random.integers(self.lengths[episode]))
        return jax.tree.map(lambda x: x[step], self.states[episode])


class DemonstrationReplay(Replay):
    """A replay whose samples have a share of rows from demonstrations, which are kept apart and never overwritten.

    Of every batch (the last axis of a sample's shape) the last `round(share * batch)` rows are demonstrations, as
    `demonstrated` tells; at least one row is of each kind. Demonstrations are drawn by a replay of their own, so that
    hindsight relabels them if that is a `HindsightReplay`. The default share, 128 of 1024, is that of
    OpenAI's implementation of Nair et al. 2018.
    """

    def __init__(self, replay: Replay, demonstrations: Replay, share: float | int = 0.125):
        super().__init__(replay.capacity)
        if not 0 < share < 1:
            raise OffroadError(f"the share of demonstrations in a batch is {share}, expected a number between 0 and 1")
        if isinstance(replay, CompactReplay) or isinstance(demonstrations, CompactReplay):
            raise OffroadError(
                "experience and demonstrations that are cut to their own numbers of objects do not mix; use "
                "CompactReplay(DemonstrationReplay(...)), which cuts both alike"
            )
        if not len(demonstrations):
            raise OffroadError("the replay of demonstrations is empty; fill it with Demonstrations.fill(replay)")
        self.replay, self.demonstrations, self.share = replay, demonstrations, share

    def __len__(self) -> int:
        return len(self.replay) + len(self.demonstrations)

    def add(self, transitions: Transition, mask: Bool[np.ndarray, "T N"] | None = None) -> None:
        """Adds experience, a rollout with leaves `[T, N, ...]`."""
        self.replay.add(transitions, mask)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        """Experience and demonstrations with leading axes `shape`."""
        shape = (shape,) if isinstance(shape, int) else shape
        *outer, batch = shape
        shown = min(max(round(self.share * batch), 1), batch - 1)
        parts = (
            self.replay.sample(rng, (*outer, batch - shown)),
            self.demonstrations.sample(rng, (*outer, shown)),
        )
        mixed: Transition = jax.tree.map(lambda *x: np.concatenate(x, axis=len(outer)), *parts)
        return replace(mixed, demonstrated=np.zeros(shape, bool) | (np.arange(batch) >= batch - shown))

    def clear(self) -> None:
        """Forgets the experience, not the demonstrations."""
        self.replay.clear()

    def describe(self) -> dict[str, Any]:
        parts = {"replay": self.replay.describe(), "demonstrations": self.demonstrations.describe()}
        return {"kind": type(self).__name__, "share": self.share, **parts}

    def get_state(self) -> dict[str, Any]:
        return {"replay": self.replay.get_state(), "demonstrations": self.demonstrations.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.replay.set_state(state["replay"])
        self.demonstrations.set_state(state["demonstrations"])


def _fields(transitions: Transition) -> dict[str, Any]:
    """The fields that every transition has."""
    return {f.name: getattr(transitions, f.name) for f in fields(Transition) if f.name not in OPTIONAL}


def _flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a nested dict by names like `observation/objects`."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): np.asarray(tree)}
    return {name: x for key, inner in tree.items() for name, x in _flatten(inner, f"{prefix}{key}/").items()}


def _nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `_flatten`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return tree


def _shapes(name: str, space: gym_spaces.Space) -> dict[str, tuple[int, ...]]:
    """The shapes of one observation's arrays by the names of `_flatten`."""
    if isinstance(space, gym_spaces.Dict):
        return {key: shape for part, inner in space.items() for key, shape in _shapes(f"{name}/{part}", inner).items()}
    return {name: space.shape or ()}


def _described(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {shape}"


def _stack(*arrays: Any) -> np.ndarray:
    return np.stack(arrays)


def _length(state: State) -> int:
    return len(jax.tree.leaves(state)[0])
