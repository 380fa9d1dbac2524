"""The interface that every learner implements, and what they share about actions."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, Key, PyTree

from offroad.data.spaces import Spaces
from offroad.errors import OffroadError

Learner = TypeVar("Learner", bound=eqx.Module)


class Agent(eqx.Module):
    """A learner: networks, optimiser state and running statistics in one immutable pytree whose leaves are all arrays.

    Abstract: concrete agents are final, none inherits behaviour from another. Because every leaf is an array, an agent
    can be carried through `jax.lax.scan`, stacked over seeds with `jax.vmap` and saved as plain arrays.
    """

    spaces: eqx.AbstractVar[Spaces]
    config: eqx.AbstractVar[Any]

    @classmethod
    @abstractmethod
    def create(cls, spaces: Spaces, config: Any, key: Key[Array, ""]) -> "Agent":
        """A new agent for these spaces. Raises `OffroadError` if the algorithm cannot act in them."""

    @abstractmethod
    def act(
        self, observation: PyTree[Any], key: Key[Array, ""] | None = None, memory: PyTree[Any] = ()
    ) -> tuple[PyTree[Any], PyTree[Any]]:
        """Chooses actions for a batch of observations (one leading axis).

        **Arguments:** `key`: the randomness of exploration, consumed; `None` asks for the deterministic policy.
        `memory`: what the previous call returned, or `initial_memory(n)` at the start of an episode.

        **Returns:** actions in the environment's units, and the new memory.
        """

    @abstractmethod
    def update(self, batch: PyTree[Any], key: Key[Array, ""]) -> tuple["Agent", dict[str, Float[Array, ""]]]:
        """One learning step; pure. Takes a `Rollout` (on-policy agents) or a `Transition` batch (off-policy agents).

        **Returns:** the new agent and scalar metrics; a non-finite metric stops the run.
        """

    def initial_memory(self, num_envs: int) -> PyTree[Any]:
        """The policy's memory at the start of an episode, one row an environment; `()` for memoryless policies."""
        return ()

    def begin_episodes(self) -> "Agent":
        """The same agent when all environments were reset: what it keeps of their present episodes is forgotten.

        Trainers of rollouts call it; in a batch from a replay no step follows another.
        """
        return self


def stacked(agents: Sequence[Learner]) -> Learner:
    """Agents, or other learners, of one shape as a single pytree with a leading axis: one compiled call trains all of
    them (seeds)."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *agents)


class ActionScale:
    """Maps a box of actions to [-1, 1] and back, so that networks and noise scales do not depend on units.

    A side without a finite bound is left in the environment's own units.
    """

    def __init__(self, space: gym_spaces.Box):
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
        self.centre: Any = ((high + low) / 2).astype(np.float32)
        self.half: Any = ((high - low) / 2).astype(np.float32)

    def to_env(self, unit: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        return self.centre + self.half * unit

    def to_unit(self, action: Float[Any, "*batch action"]) -> Float[Array, "*batch action"]:
        return (action - self.centre) / self.half


def box_actions(spaces: Spaces, algorithm: str) -> gym_spaces.Box:
    """The action space if it is a vector of real numbers, else an `OffroadError` that names agents which fit."""
    if isinstance(spaces.action, gym_spaces.Box) and len(spaces.action.shape) == 1:
        return spaces.action
    raise OffroadError(
        f"{algorithm} needs a one-dimensional Box action space, this environment has {spaces.action}; "
        "for discrete actions use ppo or dqn, or bc or discrete_cql from data"
    )


def at_least_one(config: Any, *names: str) -> None:
    """Raises `OffroadError` for a number among these settings that is below 1."""
    for name in names:
        if (value := getattr(config, name)) < 1:
            raise OffroadError(f"{name} is {value}, expected at least 1")
