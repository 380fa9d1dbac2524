"""Running statistics that bring observations and rewards to unit scale: pytrees of arrays, updated into new ones."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, PyTree, Shaped

CLIP = 10.0
EPSILON = 1e-8


class RunningMoments(eqx.Module):
    """Mean and (population) variance of everything seen, by the parallel update of Chan, Golub and LeVeque (1979).

    The variance is kept instead of the sum of squares, so that float32 suffices for any number of samples.
    """

    mean: Float[Array, "*shape"]
    var: Float[Array, "*shape"]
    count: Float[Array, ""]

    @classmethod
    def create(cls, shape: tuple[int, ...] = ()) -> "RunningMoments":
        """Zero mean and unit variance, which the first update replaces."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))

    def update(self, batch: Shaped[Array, "..."], weights: Shaped[Array, "..."] | None = None) -> "RunningMoments":
        """Takes in samples along any leading axes of `batch`; `weights` (or a mask) has just those axes."""
        axes = tuple(range(batch.ndim - self.mean.ndim))
        lead = batch.shape[: len(axes)]
        weights = jnp.ones(lead) if weights is None else weights.astype(jnp.float32)
        count = jnp.sum(weights)
        share = (weights / jnp.maximum(count, EPSILON)).reshape(lead + (1,) * self.mean.ndim)
        # What a mask leaves out may be anything, even NaN. Centring on the old mean first keeps large offsets exact.
        centred = jnp.where(share > 0, batch.astype(jnp.float32) - self.mean, 0.0)
        shift = jnp.sum(share * centred, axis=axes)
        var = jnp.sum(share * (centred - shift) ** 2, axis=axes)
        return self.merge(RunningMoments(self.mean + shift, var, count))

    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """The moments of both samples together."""
        count = self.count + other.count
        w = other.count / jnp.maximum(count, EPSILON)
        delta = other.mean - self.mean
        var = (1 - w) * self.var + w * other.var + w * (1 - w) * delta**2
        return RunningMoments(self.mean + w * delta, var, count)


class ObservationNorm(eqx.Module):
    """Shifts and scales the float `Box` leaves of observations to zero mean and unit variance, clipped to +-10.

    Images (uint8) and discrete leaves pass unchanged: `moments` mirrors the observation and is None there.
    """

    moments: PyTree[Any]

    @classmethod
    def create(cls, space: spaces.Space) -> "ObservationNorm":
        return cls(_moments_of(space))

    def update(self, observation: PyTree[Any], mask: Bool[Array, "*batch"] | None = None) -> "ObservationNorm":
        """Takes in observations with any leading axes; `mask`, of those axes, is False where one does not count."""
        return ObservationNorm(_map(lambda m, x: m.update(x, mask), self.moments, observation, keep=False))

    def __call__(self, observation: PyTree[Any]) -> PyTree[Any]:
        """The normalised observation; of a Dict space also some of its entries alone."""
        return _map(_normalise, self.moments, observation, keep=True)


class ReturnNorm(eqx.Module):
    """Scales rewards by the running standard deviation of the discounted return (Engstrom et al. 2020).

    `discounted` is each environment's return so far. Rewards are to be multiplied by `scale`; where they are sparse
    the scaled ones can be large, so clip them.
    """

    moments: RunningMoments
    discounted: Float[Array, " N"]

    @classmethod
    def create(cls, num_envs: int) -> "ReturnNorm":
        return cls(RunningMoments.create(), jnp.zeros(num_envs))

    @property
    def scale(self) -> Float[Array, ""]:
        return jax.lax.rsqrt(self.moments.var + EPSILON)

    def begin(self) -> "ReturnNorm":
        """The same scale at the first step of all environments."""
        return replace(self, discounted=jnp.zeros_like(self.discounted))

    def update(
        self,
        reward: Float[Array, "T N"],
        done: Bool[Array, "T N"],
        gamma: float | Float[Array, ""],
        mask: Bool[Array, "T N"] | None = None,
    ) -> "ReturnNorm":
        """Takes in `T` steps of `N` environments; `mask` is False for a step that was none."""
        mask = jnp.ones_like(done) if mask is None else mask

        def step(carry, now):
            reward, done, mask = now
            total = jnp.where(mask, gamma * carry + reward, carry)
            return jnp.where(done & mask, 0.0, total), total

        discounted, totals = jax.lax.scan(step, self.discounted, (reward, done, mask))
        return ReturnNorm(self.moments.update(totals, mask), discounted)


def _moments_of(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _moments_of(inner) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return RunningMoments.create(space.shape)
    return None


def _map(f: Any, moments: Any, observation: Any, keep: bool) -> Any:
    """Applies `f` where there are moments; elsewhere gives the observation (`keep`) or None."""
    if isinstance(moments, dict):
        return {name: _map(f, moments[name], inner, keep) for name, inner in observation.items()}
    if moments is None:
        return observation if keep else None
    return f(moments, jnp.asarray(observation))


def _normalise(moments: RunningMoments, x: Array) -> Array:
    z = (x.astype(jnp.float32) - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON)
    return jnp.clip(z, -CLIP, CLIP)
