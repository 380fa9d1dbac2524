"""One compiled loop for every small regression of this package: Adam on random rows, the best held-out weights kept."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

CHECKS = 10
"""How often the held-out rows are looked at."""


def minimise(
    loss: Callable[[Any, PyTree[Any]], Float[Array, ""]],
    members: Any,
    data: PyTree[Any],
    held: PyTree[Any],
    *,
    updates: int,
    batch: int,
    rate: float,
    key: PRNGKeyArray,
) -> Any:
    """An ensemble of modules (stacked: every array leaf with a leading axis) after `updates` steps of Adam.

    `loss(member, rows)` is the loss of one member on rows of `data`, a pytree with a leading axis of rows; every member
    draws rows of its own. The rate falls to 1 % along a cosine. Of every member the weights return that did best on all
    of `held`, looked at `CHECKS` times and before the first step: no member is worse there than it came.
    """
    rows = jax.tree.leaves(data)[0].shape[0]
    schedule = optax.cosine_decay_schedule(rate, updates, 0.01)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    parameters, fixed = eqx.partition(members, eqx.is_inexact_array)

    def step(carry: Any, keys: Any) -> tuple[Any, None]:
        def one(weights: Any, state: Any, key: PRNGKeyArray) -> Any:
            chosen = jax.random.randint(key, (batch,), 0, rows)
            part = jax.tree.map(lambda x: x[chosen], data)
            slope = jax.grad(lambda w: loss(eqx.combine(w, fixed), part))(weights)
            change, state = optimiser.update(slope, state, weights)
            return optax.apply_updates(weights, change), state

        return jax.vmap(one)(carry[0], carry[1], keys), None

    @jax.jit
    def advance(carry: Any, key: PRNGKeyArray) -> tuple[Any, Float[Array, " members"]]:
        keys = jax.random.split(key, (max(updates // CHECKS, 1), count))
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, judge(carry[0])

    def judge(weights: Any) -> Float[Array, " members"]:
        return jax.vmap(lambda w: loss(eqx.combine(w, fixed), held))(weights)

    count = jax.tree.leaves(parameters)[0].shape[0]
    best, scores = parameters, jax.jit(judge)(parameters)
    carry = parameters, jax.vmap(optimiser.init)(parameters)
    for part in jax.random.split(key, CHECKS):
        carry, found = advance(carry, part)
        better = found < scores  # False for NaN
        best = jax.tree.map(
            lambda new, old, b=better: jnp.where(b.reshape(-1, *[1] * (new.ndim - 1)), new, old), carry[0], best
        )
        scores = jnp.where(better, found, scores)
    return eqx.combine(best, fixed)
