"""Replay buffers: a ring of transitions on the host, and one inside compiled loops."""

from dataclasses import fields
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from offroad.data.transitions import Transition
from offroad.errors import OffroadError


class Replay:
    """The newest `capacity` transitions, in NumPy arrays that keep the dtype of what is added (images stay uint8).

    Memory is reserved when the first transitions tell the shapes, and the system hands it out as the ring fills.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise OffroadError(f"a replay's capacity is {capacity}, expected at least 1")
        self.capacity = capacity
        self._ring: PyTree[np.ndarray] = None
        self._added = 0  # in all, so that the next one goes to `_added % capacity`

    def __len__(self) -> int:
        return self._filled

    @property
    def _filled(self) -> int:
        return min(self._added, self.capacity)

    def add(self, transitions: Transition, mask: Bool[np.ndarray, "T N"] | None = None) -> None:
        """Adds a rollout: leaves `[T, N, ...]`, of which only those steps where `mask` is True."""
        kept = np.ones(transitions.reward.shape[:2], bool) if mask is None else mask
        new = jax.tree.map(lambda x: np.asarray(x)[kept], transitions)
        n = new.reward.shape[0]
        if self._ring is None:
            self._ring = jax.tree.map(lambda x: np.zeros((self.capacity, *x.shape[1:]), x.dtype), new)
        rows = (self._added + np.arange(n)[-self.capacity :]) % self.capacity

        def write(ring: np.ndarray, x: np.ndarray) -> None:
            ring[rows] = x[-self.capacity :]

        jax.tree.map(write, self._ring, new)
        self._added += n

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Transition:
        """Transitions drawn uniformly with replacement, with leading axes `shape`."""
        if not len(self):
            raise OffroadError("the replay is empty; add transitions before sampling from it")
        rows = rng.integers(len(self), size=shape)
        return jax.tree.map(lambda ring: ring[rows], self._ring)

    def describe(self) -> dict[str, Any]:
        """The kind and its settings as JSON, for a run's `config.json`; replays with equal ones continue each other."""
        return {"kind": type(self).__name__, "capacity": self.capacity}

    def clear(self) -> None:
        """Forgets everything: what was collected for another task, say."""
        self._added, self._ring = 0, None

    def get_state(self) -> dict[str, Any]:
        """The filled part as nested dicts of arrays: views, to be saved before the next `add`."""
        if self._ring is None:
            return {"added": 0}
        filled = jax.tree.map(lambda x: x[: self._filled], self._ring)
        ring = {f.name: getattr(filled, f.name) for f in fields(Transition)}
        return {"added": self._added, "ring": ring}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` gave, in this process or another. The capacity must be the same."""
        self.clear()
        if "ring" not in state:
            return
        filled = min(state["added"], self.capacity)
        stored = len(state["ring"]["reward"])
        if stored != filled:
            raise OffroadError(
                f"a saved replay of {stored} transitions, {state['added']} added in all, does not fit the capacity "
                f"{self.capacity}; use the capacity that it was saved with"
            )

        def restore(x: np.ndarray) -> np.ndarray:
            ring = np.zeros((self.capacity, *x.shape[1:]), x.dtype)
            ring[:filled] = x
            return ring

        self._ring = jax.tree.map(restore, Transition(**state["ring"]))
        self._added = state["added"]


class JaxReplay(eqx.Module):
    """The same ring as a pytree, for loops that are compiled whole.

    `ring` has leaves `[capacity, ...]`. `added` counts the transitions added, less whole rounds once the ring is full:
    long runs would overflow 32 bits.
    """

    ring: Transition
    added: Int[Array, ""]

    @classmethod
    def create(cls, capacity: int, example: Transition) -> "JaxReplay":
        """An empty ring for transitions like `example`, which has no batch axis and may be of `ShapeDtypeStruct`s."""
        ring = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), example)
        return cls(ring, jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        return self.ring.reward.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        return jnp.minimum(self.added, self.capacity)

    def add(self, transitions: Transition) -> "JaxReplay":
        """Adds `[N]` transitions; of more than `capacity` at once the last ones remain."""
        n, capacity = transitions.reward.shape[0], self.capacity
        rows = (self.added + jnp.arange(n)[-capacity:]) % capacity
        ring = jax.tree.map(lambda ring, x: ring.at[rows].set(x[-capacity:]), self.ring, transitions)
        total = self.added + n
        return JaxReplay(ring, jnp.where(total < capacity, total, capacity + total % capacity))

    def sample(self, key: Key[Array, ""], n: int) -> Transition:
        """`[n]` transitions drawn uniformly with replacement. An empty ring gives zeros."""
        rows = jax.random.randint(key, (n,), 0, jnp.maximum(self.size, 1))
        return jax.tree.map(lambda ring: ring[rows], self.ring)
