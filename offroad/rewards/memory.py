"""Walking through rollouts with a memory of each environment's present episode."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from offroad.data.transitions import Transition


class EpisodeMemory(eqx.Module):
    """`content` has one row an environment; `fresh` is True where an episode is about to take its first step."""

    content: PyTree[Array]
    fresh: Bool[Array, " N"]


def walk(
    memory: EpisodeMemory,
    empty: PyTree[Array],
    before: PyTree[Array],
    after: PyTree[Array],
    steps: Transition,
    mask: Bool[Array, "T N"],
    visit: Callable[[PyTree[Array], PyTree[Array], Array], tuple[Float[Array, " N"], PyTree[Array]]],
) -> tuple[Float[Array, "T N"], EpisodeMemory]:
    """Pays for every step what `visit(content, features, t) -> (bonus [N], content)` says of where it led.

    `before` and `after` are features `[T, N, ...]` of the observation and the next one, `empty` the content at the
    start of an episode. Where an episode starts was not chosen, so it is visited without pay. Steps that `mask` leaves
    out change nothing; the memory of an episode ends with it.
    """

    def start(memory: EpisodeMemory, before: PyTree[Array], t: Array) -> PyTree[Array]:
        _, started = visit(memory.content, before, 2 * t)
        return _where(memory.fresh, started, memory.content)

    def step(memory: EpisodeMemory, now: Any) -> tuple[EpisodeMemory, Float[Array, " N"]]:
        before, after, done, mask, t = now
        content = jax.lax.cond(jnp.any(memory.fresh), start, lambda memory, *_: memory.content, memory, before, t)
        bonus, content = visit(content, after, 2 * t + 1)
        content = _where(done, empty, content)
        return EpisodeMemory(_where(mask, content, memory.content), jnp.where(mask, done, memory.fresh)), bonus

    done = steps.terminated | steps.truncated
    memory, bonus = jax.lax.scan(step, memory, (before, after, done, mask, jnp.arange(mask.shape[0])))
    return bonus, memory


def _where(condition: Bool[Array, " N"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (b.ndim - 1)), a, b), new, old)
