"""Batches of entity observations without the padding that none of their rows needs."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from offroad.data.replay import Replay
from offroad.data.transitions import Transition

ENTITIES = ("objects", "goals", "mask")


class CompactReplay(Replay):
    """A replay whose samples are cut to as many slots for objects as have ever been in use.

    Networks that take any number of objects (`nets.relational.Relational`) then pay for the objects there are: a
    curriculum that begins with one object in a scene for four costs a quarter. Objects must fill the slots from the
    first one on; observations need a `mask`. Compiled updates are compiled anew when the number grows.
    """

    def __init__(self, replay: Replay):
        super().__init__(replay.capacity)
        self.replay, self.slots = replay, 1

    def __len__(self) -> int:
        return len(self.replay)

    def add(self, transitions: Transition, mask: Bool[np.ndarray, "T N"] | None = None) -> None:
        used = np.flatnonzero(np.asarray(transitions.observation["mask"]).reshape(-1, _slots(transitions)).any(0))
        self.slots = max(self.slots, int(used[-1]) + 1 if len(used) else 0)
        self.replay.add(transitions, mask)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        lead = 1 if isinstance(shape, int) else len(shape)
        cut = (*(slice(None),) * lead, slice(self.slots))

        def trimmed(observation: dict[str, Any]) -> dict[str, Any]:
            return {name: part[cut] if name in ENTITIES else part for name, part in observation.items()}

        batch = self.replay.sample(rng, shape)
        return Transition(
            **{name: trimmed(value) if name.endswith("observation") else value for name, value in vars(batch).items()}
        )

    def get_state(self) -> dict[str, Any]:
        return {"replay": self.replay.get_state(), "slots": self.slots}

    def set_state(self, state: dict[str, Any]) -> None:
        self.replay.set_state(state["replay"])
        self.slots = state["slots"]


def _slots(transitions: Transition) -> int:
    return jax.tree.leaves(transitions.observation["mask"])[0].shape[-1]
