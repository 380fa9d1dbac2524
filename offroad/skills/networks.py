"""The networks of primitives: Gaussians over latents and actions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from offroad.nets.distributions import Normal
from offroad.nets.encoder import Encoder
from offroad.nets.mlp import MLP
from offroad.nets.recurrent import GRU


class Conditional(eqx.Module):
    """Observation, and a vector if `extra` is not 0 -> Gaussian with independent components."""

    encoder: Encoder
    head: MLP

    def __init__(self, encoder: Encoder, extra: int, hidden: tuple[int, ...], size: int, key: PRNGKeyArray):
        self.encoder, self.head = encoder, _mlp((encoder.size + extra, *hidden, 2 * size), key)

    def __call__(self, observation: PyTree[Any], *extra: Float[Array, "*batch extra"]) -> Normal:
        return _normal(self.head(jnp.concatenate([self.encoder(observation), *extra], -1)))


class Flattened(eqx.Module):
    """A window -> Gaussian over z: all numbers of the window side by side, those after its end as zeros."""

    encoder: Encoder
    head: MLP

    def __init__(
        self, encoder: Encoder, actions: int, length: int, hidden: tuple[int, ...], latents: int, key: PRNGKeyArray
    ):
        self.encoder = encoder
        self.head = _mlp((length * (encoder.size + actions), *hidden, 2 * latents), key)

    def __call__(
        self, observation: PyTree[Any], action: Float[Array, "batch c action"], valid: Bool[Array, "batch c"]
    ) -> Normal:
        steps = jnp.concatenate([self.encoder(observation), action], -1)
        steps = jnp.where(valid[..., None], steps, 0)
        return _normal(self.head(steps.reshape(steps.shape[0], -1)))


class Recurrent(eqx.Module):
    """A window -> Gaussian over z: a GRU from the first step to the last and one back, on features of observations and
    actions. Steps after the window's end are zeros.
    """

    encoder: Encoder
    features: MLP
    onward: GRU
    back: GRU
    head: MLP

    def __init__(
        self, encoder: Encoder, actions: int, length: int, hidden: tuple[int, ...], latents: int, key: PRNGKeyArray
    ):
        """The GRUs are as wide as the last of `hidden`; they take any `length`."""
        features_key, onward_key, back_key, head_key = jax.random.split(key, 4)
        self.encoder, self.features = encoder, _mlp((encoder.size, *hidden), features_key)
        self.onward = GRU(hidden[-1] + actions, hidden[-1], onward_key)
        self.back = GRU(hidden[-1] + actions, hidden[-1], back_key)
        self.head = _mlp((2 * hidden[-1], 2 * latents), head_key)

    def __call__(
        self, observation: PyTree[Any], action: Float[Array, "batch c action"], valid: Bool[Array, "batch c"]
    ) -> Normal:
        features = jax.nn.relu(self.features(self.encoder(observation)))
        steps = jnp.where(valid[..., None], jnp.concatenate([features, action], -1), 0)
        steps = jnp.moveaxis(steps, 1, 0)  # time comes first
        never = jnp.zeros(steps.shape[:2], bool)
        onward, _ = self.onward(self.onward.initial(steps.shape[1]), steps, never)
        back, _ = self.back(self.back.initial(steps.shape[1]), steps[::-1], never)
        return _normal(self.head(jnp.concatenate([onward, back], -1)))


def _mlp(sizes: tuple[int, ...], key: PRNGKeyArray) -> MLP:
    return MLP(sizes, key=key, activation="relu", init="uniform")


def _normal(out: Float[Array, "*batch out"]) -> Normal:
    mean, log_std = jnp.split(out, 2, axis=-1)
    return Normal(mean, jnp.clip(log_std, -5, 2))
