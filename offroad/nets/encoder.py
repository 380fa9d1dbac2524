"""How an observation becomes a vector of features.

A configuration (`Flat`) is a frozen dataclass that lives in an agent's config; its `build` makes the `Encoder`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from offroad.data.spaces import to_json
from offroad.errors import OffroadError
from offroad.nets.conv import convolve
from offroad.nets.mlp import linear


@dataclass(frozen=True)
class Pixels:
    """A convolutional network for images; the default is that of Mnih et al. 2015."""

    channels: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (8, 4, 3)
    strides: tuple[int, ...] = (4, 2, 1)
    size: int = 512

    def __post_init__(self):
        if not self.channels or not len(self.channels) == len(self.kernels) == len(self.strides):
            raise OffroadError(
                f"Pixels has channels {self.channels}, kernels {self.kernels} and strides {self.strides}; "
                "give one of each per layer"
            )


class Encoder(eqx.Module):
    """Observations of one space, with any leading axes, to `size` features."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]: ...


@dataclass(frozen=True)
class Flat:
    """All parts side by side: vectors as they are, discrete values one-hot, images through `pixels`."""

    pixels: Pixels = Pixels()

    def build(self, space: spaces.Space, key: PRNGKeyArray) -> Encoder:
        match space:
            case spaces.Dict():
                keys = jax.random.split(key, len(space.spaces))
                return _Parts({name: self.build(inner, k) for (name, inner), k in zip(space.spaces.items(), keys)})
            case spaces.Discrete():
                return _OneHot(int(space.n), int(space.start))
            case spaces.Box() if space.dtype == np.uint8 and len(space.shape) == 3:
                return _Image(space.shape, self.pixels, key)
            case spaces.Box() | spaces.MultiBinary():
                return _Vector(int(np.prod(space.shape)), len(space.shape))
        to_json(space, "observation space")  # raises for what nothing here reads
        raise AssertionError(space)


class _Vector(Encoder):
    size: int = eqx.field(static=True)
    ndim: int = eqx.field(static=True)

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        x = jnp.asarray(observation)
        return x.reshape((*x.shape[: x.ndim - self.ndim], self.size)).astype(jnp.float32)


class _OneHot(Encoder):
    size: int = eqx.field(static=True)
    start: int = eqx.field(static=True)

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        return jax.nn.one_hot(jnp.asarray(observation) - self.start, self.size)


class _Parts(Encoder):
    parts: dict[str, Encoder]
    size: int = eqx.field(static=True)

    def __init__(self, parts: dict[str, Encoder]):
        self.parts = parts
        self.size = sum(part.size for part in parts.values())

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        return jnp.concatenate([self.parts[name](observation[name]) for name in sorted(self.parts)], axis=-1)


def columns(encoder: Encoder, name: str) -> slice | None:
    """Which features are the entry `name` of the observation, if the encoder puts entries side by side as they are."""
    if not isinstance(encoder, _Parts) or not isinstance(encoder.parts[name], _Vector):
        return None
    start = sum(part.size for other, part in encoder.parts.items() if other < name)
    return slice(start, start + encoder.parts[name].size)


class _Image(Encoder):
    """ReLU convolutions without padding, then one ReLU layer of `size` units. Pixels enter as values / 255."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    head: eqx.nn.Linear
    channels_first: bool = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], pixels: Pixels, key: PRNGKeyArray):
        # Images have fewer channels than rows or columns.
        self.channels_first = shape[0] < shape[2]
        side = np.array(shape[1:] if self.channels_first else shape[:2])
        depth = shape[0] if self.channels_first else shape[2]
        keys = jax.random.split(key, len(pixels.channels) + 1)
        layers = []
        for out, kernel, stride, k in zip(pixels.channels, pixels.kernels, pixels.strides, keys):
            layers.append(eqx.nn.Conv2d(depth, out, kernel, stride, key=k))
            side, depth = (side - kernel) // stride + 1, out
            if side.min() < 1:
                raise OffroadError(
                    f"images of shape {shape} are too small for the kernels {pixels.kernels} with strides "
                    f"{pixels.strides}; pass an encoder with smaller ones, for example "
                    "Flat(Pixels(channels=(16, 32), kernels=(3, 3), strides=(2, 1)))"
                )
        self.convolutions = tuple(layers)
        self.head = eqx.nn.Linear(int(side.prod()) * depth, pixels.size, key=keys[-1])
        self.size = pixels.size

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        x = jnp.asarray(observation).astype(jnp.float32) / 255
        x = jnp.moveaxis(x, -3, -1) if self.channels_first else x
        for layer in self.convolutions:
            x = jax.nn.relu(convolve(layer, x))
        return jax.nn.relu(linear(self.head, x.reshape((*x.shape[:-3], -1))))
