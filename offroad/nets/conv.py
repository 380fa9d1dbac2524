"""Convolutions over images."""

import equinox as eqx
import jax
from jaxtyping import Array, Float


def convolve(
    layer: eqx.nn.Conv2d, x: Float[Array, "*batch height width in"]
) -> Float[Array, "*batch rows columns out"]:
    """The layer (stride as its own, no padding) on channels-last images with any leading axes."""
    images = x.reshape((-1, *x.shape[-3:]))
    y = jax.lax.conv_general_dilated(
        images, layer.weight, layer.stride, "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    if layer.bias is not None:
        y = y + layer.bias[:, 0, 0]
    return y.reshape(x.shape[:-3] + y.shape[1:])
