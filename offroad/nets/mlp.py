"""Fully connected networks."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from offroad.errors import OffroadError, unknown

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jax.numpy.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}


def linear(layer: eqx.nn.Linear, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
    """The layer on an array with any leading axes (Equinox's own call takes one vector)."""
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


class MLP(eqx.Module):
    """Linear layers with an activation between them and none after the last.

    `sizes` are the widths from the input to the output. `init="orthogonal"`, the convention of PPO, draws orthogonal
    weights of gain sqrt(2), of gain `final_scale` (1 unless told) in the last layer, and zero biases;
    `init="uniform"`, that of SAC and TD3, draws weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)) and
    multiplies the last layer by `final_scale`. `layer_norm` normalises what comes out of every activation (Ba et al.
    2016, arXiv 1607.06450), which keeps the values of critics bounded far from their data. `dropout` is the share of
    units after each activation that a call with a key silences; one without a key silences none.
    """

    layers: tuple[eqx.nn.Linear, ...]
    norms: tuple[eqx.nn.LayerNorm, ...]  # empty, or one for every activation
    activation: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        key: PRNGKeyArray,
        activation: str = "tanh",
        init: Literal["orthogonal", "uniform"] = "orthogonal",
        final_scale: float | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if not 0 <= dropout < 1:
            raise OffroadError(f"dropout is {dropout}, expected a share from 0 to less than 1")
        if len(sizes) < 2 or min(sizes) < 1:
            raise OffroadError(f"an MLP needs at least an input and an output width, all positive, not {tuple(sizes)}")
        final = 1.0 if final_scale is None else final_scale
        scales = [math.sqrt(2) if init == "orthogonal" else 1.0] * (len(sizes) - 2) + [final]
        keys = jax.random.split(key, len(scales))
        self.layers = tuple(
            _layer(fan_in, fan_out, init, scale, k)
            for fan_in, fan_out, scale, k in zip(sizes[:-1], sizes[1:], scales, keys, strict=True)
        )
        self.norms = tuple(eqx.nn.LayerNorm(size) for size in sizes[1:-1]) if layer_norm else ()
        self.activation, self.dropout = activation, dropout

    def __call__(self, x: Float[Array, "*batch in"], key: PRNGKeyArray | None = None) -> Float[Array, "*batch out"]:
        return self.after_first(linear(self.layers[0], x), key)

    def after_first(
        self, x: Float[Array, "*batch first"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch out"]:
        """The output, given that of the first linear layer."""
        activation = ACTIVATIONS[self.activation]
        for i, layer in enumerate(self.layers[1:]):
            x = activation(x)
            if self.norms:
                x = _normalise(self.norms[i], x)
            if self.dropout and key is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.dropout, x.shape)
                x = jax.numpy.where(kept, x / (1 - self.dropout), 0)
            x = linear(layer, x)
        return x


def _normalise(norm: eqx.nn.LayerNorm, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """The layer on an array with any leading axes."""
    z = jax.nn.standardize(x, axis=-1, epsilon=norm.eps)
    return z * norm.weight + norm.bias  # pyright: ignore[reportOperatorIssue]


def _layer(fan_in: int, fan_out: int, init: str, scale: float, key: PRNGKeyArray) -> eqx.nn.Linear:
    layer = eqx.nn.Linear(fan_in, fan_out, key=key)  # Equinox draws U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    if init == "uniform":
        return jax.tree.map(lambda w: scale * w, layer)
    weight = jax.nn.initializers.orthogonal(scale)(key, (fan_out, fan_in))
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jax.numpy.zeros(fan_out)))
