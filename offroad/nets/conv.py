"""Convolutions over images."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(
    layer: eqx.nn.Conv2d, x: Float[Array, "*batch height width in"]
) -> Float[Array, "*batch rows columns out"]:
    """The layer (its stride, no padding) on channels-last images with any leading axes.

    On a CPU as one matrix product: there, XLA compiles convolutions inside loops, which updates are, into code that is
    some twenty times slower (`benchmarks/conv.py`).
    """
    images = x.reshape((-1, *x.shape[-3:]))
    y = by_matrix_product(layer, images) if jax.default_backend() == "cpu" else by_xla(layer, images)
    return y.reshape(x.shape[:-3] + y.shape[1:])


def by_matrix_product(layer: eqx.nn.Conv2d, x: Float[Array, "n height width in"]) -> Float[Array, "n rows columns out"]:
    """Puts the inputs of each output side by side and multiplies them with the weights."""
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    rows, columns = ((side - kernel) // stride * stride + 1 for side in x.shape[1:3])
    patches = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(kernel) for j in range(kernel)]
    weight = layer.weight.transpose(2, 3, 1, 0).reshape(-1, layer.out_channels)
    return _add_bias(layer, jnp.concatenate(patches, axis=-1) @ weight)


def by_xla(layer: eqx.nn.Conv2d, x: Float[Array, "n height width in"]) -> Float[Array, "n rows columns out"]:
    """The same by XLA's convolution."""
    weight = jnp.asarray(layer.weight)  # which may be a product of several
    y = jax.lax.conv_general_dilated(x, weight, layer.stride, "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC"))
    return _add_bias(layer, y)


def _add_bias(layer: eqx.nn.Conv2d, y: Float[Array, "n rows columns out"]) -> Float[Array, "n rows columns out"]:
    return y if layer.bias is None else y + layer.bias[:, 0, 0]
