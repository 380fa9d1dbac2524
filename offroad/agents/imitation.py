"""Actor-critics that learn from demonstrations as well as from experience (Nair et al. 2018, arXiv 1709.10089)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True)
class Imitation:
    """The weights of the two losses, those of OpenAI's implementation (baselines).

    The cloning loss is a sum over rows and the policy's own a mean: 0.0078 is 1/128, for batches with 128 rows of
    demonstrations. Adam sees only the ratio of the two weights.
    """

    weight_policy: float = 1e-3  # lambda_1
    weight_cloning: float = 0.0078  # lambda_2
    q_filter: bool = True  # clone only actions that the critic holds for better than the policy's own


def imitation_loss(
    imitation: Imitation | None,
    policy_loss: Float[Array, ""],
    own: Float[Array, "batch action"],
    action: Float[Array, "batch action"],
    demonstrated: Bool[Any, " batch"] | None,
    value: Callable[[Float[Array, "batch action"]], Float[Array, " batch"]],
) -> Float[Array, ""]:
    """lambda_1 policy_loss + lambda_2 L_BC, where L_BC = sum over demonstrations of |own - action|^2.

    **Arguments:** `own`: the policy's actions for the batch's observations; `action`: those of the batch.
    `demonstrated`: which rows are demonstrations; `None`, or no `imitation`, leaves the policy's loss as it is.
    `value`: the critic's value of actions for the batch's observations, for the Q-filter, which passes no gradient.
    """
    if imitation is None or demonstrated is None:
        return policy_loss
    cloned = jnp.asarray(demonstrated)
    if imitation.q_filter:
        cloned &= value(action) > value(jax.lax.stop_gradient(own))
    distance = jnp.sum(jnp.square(own - action), axis=-1)
    cloning_loss = jnp.sum(jnp.where(cloned, distance, 0.0))
    return imitation.weight_policy * policy_loss + imitation.weight_cloning * cloning_loss
