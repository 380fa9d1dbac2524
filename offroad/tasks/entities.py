"""Batches of entity observations without the padding that none of their rows needs."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from offroad.data.replay import Replay
from offroad.data.transitions import Transition
from offroad.errors import OffroadError


class CompactReplay(Replay):
    """A replay whose samples are cut to as many slots for objects as one of them has needed so far: `slots`.

    Networks that take any number of objects (`nets.relational.Relational`, without running normalisation of
    observations) then pay for the objects there are: a curriculum that begins with one object in a scene for four costs
    a quarter. The slots of absent objects must come last. Compiled updates are compiled anew when the number grows.

    It goes around all other replays, whose samples it cuts: `CompactReplay(DemonstrationReplay(...))`. Raises
    `OffroadError` for observations without `objects` and `mask`.
    """

    def __init__(self, replay: Replay):
        super().__init__(replay.capacity)
        self.replay, self.slots = replay, 1

    def __len__(self) -> int:
        return len(self.replay)

    def add(self, transitions: Transition, mask: Bool[np.ndarray, "T N"] | None = None) -> None:
        _present(transitions.observation)
        self.replay.add(transitions, mask)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        batch = self.replay.sample(rng, shape)
        present = _present(batch.observation) | _present(batch.next_observation)
        needed = np.flatnonzero(present.reshape(-1, present.shape[-1]).any(axis=0))
        self.slots = max([self.slots, *(needed + 1).tolist()])
        observation, following = (_cut(part, self.slots) for part in (batch.observation, batch.next_observation))
        return replace(batch, observation=observation, next_observation=following)

    def clear(self) -> None:
        self.replay.clear()

    def describe(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "replay": self.replay.describe()}

    def get_state(self) -> dict[str, Any]:
        return {"replay": self.replay.get_state(), "slots": self.slots}

    def set_state(self, state: dict[str, Any]) -> None:
        self.replay.set_state(state["replay"])
        self.slots = state["slots"]


def _present(observation: Any) -> Bool[np.ndarray, "*batch n"]:
    """The mask of an entity observation."""
    if not isinstance(observation, dict) or not {"objects", "mask"} <= observation.keys():
        found = f"the entries {sorted(observation)}" if isinstance(observation, dict) else "no entries"
        raise OffroadError(
            f"a CompactReplay was given observations with {found}, expected a Dict with 'objects' [n, d] and 'mask' "
            "[n]; use the replay inside it alone"
        )
    return np.asarray(observation["mask"]) > 0


def _cut(observation: dict[str, Any], slots: int) -> dict[str, Shaped[np.ndarray, "..."]]:
    cuts = {"objects": np.s_[..., :slots, :], "goals": np.s_[..., :slots, :], "mask": np.s_[..., :slots]}
    return {name: part[cuts[name]] if name in cuts else part for name, part in observation.items()}
