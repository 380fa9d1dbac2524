"""What flows from environments to agents."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, PyTree
from numpy import ndarray

ArrayLike = Array | ndarray


class Transition(eqx.Module):
    """One step of experience, or a batch of them: every leaf has the same leading axes.

    `next_observation` is what the action led to: where an episode ended it is the *final* observation, not that of the
    next episode's reset. `terminated` means that the future is worth nothing; `truncated` that it was merely cut off
    and must be bootstrapped.
    """

    observation: PyTree[Any]
    action: PyTree[Any]
    reward: Float[ArrayLike, "*batch"]
    next_observation: PyTree[Any]
    terminated: Bool[ArrayLike, "*batch"]
    truncated: Bool[ArrayLike, "*batch"]


class Rollout(eqx.Module):
    """`T` consecutive steps of `N` environments.

    `memory` is the recurrent state of the policy before the first step (`()` if it has none); `mask` is False where
    Gymnasium's NEXT_STEP autoreset inserted a step that was not one.
    """

    transitions: Transition
    memory: PyTree[Any]
    mask: Bool[ArrayLike, "T N"]
