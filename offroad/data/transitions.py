"""What flows from environments to agents."""

from typing import Any

import equinox as eqx
from jaxtyping import Bool, Float, PyTree


class Transition(eqx.Module):
    """One step of experience, or a batch of them: every leaf has the same leading axes.

    `next_observation` is what the action led to: where an episode ended it is the *final* observation, not that of the
    next episode's reset. `terminated` means that the future is worth nothing; `truncated` that it was merely cut off
    and must be bootstrapped. `demonstrated` tells which rows of a batch come from demonstrations; None where there are
    none. `next_action` is what the data did after `next_observation`, anything where its episode ended; None where
    nobody asks. Arrays are NumPy's on the host and JAX's in compiled code.
    """

    observation: PyTree[Any]
    action: PyTree[Any]
    reward: Float[Any, "*batch"]
    next_observation: PyTree[Any]
    terminated: Bool[Any, "*batch"]
    truncated: Bool[Any, "*batch"]
    demonstrated: Bool[Any, "*batch"] | None = None
    next_action: PyTree[Any] | None = None


class Rollout(eqx.Module):
    """`T` consecutive steps of `N` environments.

    `memory` is the recurrent state of the policy before the first step (`()` if it has none); `mask` is False where
    Gymnasium's NEXT_STEP autoreset inserted a step that was not one.
    """

    transitions: Transition
    memory: PyTree[Any]
    mask: Bool[Any, "T N"]
