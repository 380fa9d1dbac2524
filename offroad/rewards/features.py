"""What intrinsic rewards see: observations as vectors, and features that keep what the agent's actions affect."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from gymnasium.spaces.utils import flatdim
from jaxtyping import Array, Bool, Float, Key, PyTree

from offroad.agents.agent import ActionScale
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.nets.distributions import Categorical, Normal
from offroad.nets.encoder import Encoder, Flat, Pixels
from offroad.nets.mlp import MLP
from offroad.nets.normalise import EPSILON, RunningMoments
from offroad.nets.relational import EncoderConfig

PATCHES = Flat(Pixels(channels=(32, 32), kernels=(8, 2), strides=(8, 2), size=256))
"""For images from about 24 x 24 on: patches side by side, so that the first layer is one matrix product. On a CPU it
costs less than overlapping ones."""


class View(eqx.Module):
    """The newest frames of image stacks, and vectors at unit scale; with `whiten` images at unit scale too.

    Whitened images are multiplied by 255, which encoders of images divide by.
    """

    moments: PyTree[Any]  # mirrors the observation; None where a leaf passes unchanged
    spaces: Spaces = eqx.field(static=True)  # of what is seen
    frames: int = eqx.field(static=True)
    clip: float = eqx.field(static=True)

    @classmethod
    def create(cls, spaces: Spaces, frames: int = 0, clip: float = 10.0, whiten: bool = False) -> "View":
        """`frames` is how many of the last channels of images are seen; 0: all."""

        def moments(space: gym_spaces.Space) -> Any:
            if isinstance(space, gym_spaces.Dict):
                return {name: moments(inner) for name, inner in space.spaces.items()}
            if isinstance(space, gym_spaces.Box) and (whiten or np.issubdtype(space.dtype, np.floating)):
                start = RunningMoments.create(space.shape)
                if _is_image(space):  # as of uniform bytes: before any was counted images are seen, not just clipped
                    start = replace(start, mean=start.mean + 127.5, var=start.var * 74**2)
                return start
            return None

        seen = _newest_space(spaces.observation, frames)
        return cls(moments(seen), Spaces(seen, spaces.action, spaces.num_envs), frames, clip)

    @property
    def space(self) -> gym_spaces.Space:
        return self.spaces.observation

    @property
    def size(self) -> int:
        """The length of `flat`."""
        return flatdim(self.space)

    def __call__(self, observation: PyTree[Any]) -> PyTree[Array]:
        def see(space: gym_spaces.Space, moments: Any, x: Any) -> Any:
            if isinstance(space, gym_spaces.Dict):
                return {name: see(inner, moments[name], x[name]) for name, inner in space.spaces.items()}
            x = _newest(space, x, self.frames)
            if moments is None:
                return x
            z = (x.astype(jnp.float32) - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON)
            return jnp.clip(z, -self.clip, self.clip) * (255 if _is_image(space) else 1)

        return see(self.space, self.moments, observation)

    def update(self, observation: PyTree[Any], mask: Bool[Any, "*batch"]) -> "View":
        """Takes in observations with any leading axes, where `mask` is True."""

        def learn(space: gym_spaces.Space, moments: Any, x: Any) -> Any:
            if isinstance(space, gym_spaces.Dict):
                return {name: learn(inner, moments[name], x[name]) for name, inner in space.spaces.items()}
            return None if moments is None else moments.update(_newest(space, x, self.frames), jnp.asarray(mask))

        return replace(self, moments=learn(self.space, self.moments, observation))

    def flat(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        """What `self` made of an observation as one vector: pixels as values / 255, discrete values one-hot."""

        def flatten(space: gym_spaces.Space, x: Any) -> Array:
            if isinstance(space, gym_spaces.Dict):
                return jnp.concatenate([flatten(inner, x[name]) for name, inner in space.spaces.items()], -1)
            if isinstance(space, gym_spaces.Discrete):
                return jax.nn.one_hot(jnp.asarray(x) - int(space.start), int(space.n))
            x = jnp.asarray(x).astype(jnp.float32) / (255 if _is_image(space) else 1)
            return x.reshape(*x.shape[: x.ndim - len(space.shape or ())], -1)

        return flatten(self.space, observation)


class Features(eqx.Module):
    """Encoder and MLP: what `View` shows to one vector."""

    encoder: Encoder
    head: MLP

    @classmethod
    def create(
        cls, space: gym_spaces.Space, encoder: EncoderConfig, hidden: tuple[int, ...], size: int, key: Key[Array, ""]
    ) -> "Features":
        encoder_key, head_key = jax.random.split(key)
        built = encoder.build(space, encoder_key)
        return cls(built, MLP((built.size, *hidden, size), key=head_key, activation="relu"))

    def __call__(self, seen: PyTree[Any]) -> Float[Array, "*batch size"]:
        return self.head(self.encoder(seen))


class ActionCode(eqx.Module):
    """Actions as vectors: one-hot, or a box clipped to its bounds at unit scale."""

    spaces: Spaces = eqx.field(static=True)

    @property
    def space(self) -> gym_spaces.Space:
        return self.spaces.action

    def __check_init__(self):
        match self.space:
            case gym_spaces.Discrete() | gym_spaces.Box(shape=(_,)):
                return
        raise OffroadError(
            f"intrinsic rewards know Discrete and one-dimensional Box actions, not {self.space}; wrap the environment"
        )

    @property
    def size(self) -> int:
        return int(self.space.n) if isinstance(self.space, gym_spaces.Discrete) else int(self.space.shape[0])  # pyright: ignore

    def __call__(self, action: Any) -> Float[Array, "*batch size"]:
        if isinstance(self.space, gym_spaces.Discrete):
            return jax.nn.one_hot(jnp.asarray(action) - int(self.space.start), self.size)
        assert isinstance(self.space, gym_spaces.Box)
        return ActionScale(self.space).to_unit(jnp.clip(jnp.asarray(action), self.space.low, self.space.high))


class InverseModel(eqx.Module):
    """Features from which the action between two observations can be told (Pathak et al. 2017).

    What the actions do not affect helps nobody to tell them, so nothing makes the features keep it.
    """

    features: Features
    head: MLP
    log_std: Float[Array, " action"]  # of the guessed action; empty for discrete ones
    action: ActionCode

    @classmethod
    def create(
        cls,
        space: gym_spaces.Space,
        action: ActionCode,
        encoder: EncoderConfig,
        hidden: tuple[int, ...],
        size: int,
        key: Key[Array, ""],
    ) -> "InverseModel":
        features_key, head_key = jax.random.split(key)
        features = Features.create(space, encoder, hidden, size, features_key)
        head = MLP((2 * size, *hidden, action.size), key=head_key, activation="relu", final_scale=0.01)
        discrete = isinstance(action.space, gym_spaces.Discrete)
        return cls(features, head, jnp.zeros(0 if discrete else action.size), action)

    def guess(self, before: Float[Array, "*batch size"], after: Float[Array, "*batch size"]) -> Categorical | Normal:
        """The distribution of the action between two features."""
        out = self.head(jnp.concatenate([before, after], -1))
        return Normal(out, self.log_std) if self.log_std.size else Categorical(out)

    def loss(
        self,
        before: Float[Array, "batch size"],
        after: Float[Array, "batch size"],
        action: Any,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy (discrete) or Gaussian negative log-likelihood, with what tells whether it is any good.

        `inverse_accuracy` is the share of actions guessed right, `inverse_chance` that of the commonest action: what a
        model that sees nothing reaches. For real-valued actions the accuracy is the explained share of their variance,
        the chance 0.
        """
        total = jnp.maximum(jnp.sum(weight), 1e-8)
        share = weight / total
        guess, code = self.guess(before, after), self.action(action)
        if isinstance(guess, Categorical):
            index = jnp.argmax(code, -1)
            loss = -jnp.sum(share * guess.log_prob(index))
            accuracy = jnp.sum(share * (guess.mode() == index))
            chance = jnp.max(share @ code)
        else:
            loss = -jnp.sum(share * guess.log_prob(code))
            spread = share @ jnp.square(code - share @ code)
            accuracy = 1 - jnp.sum(share @ jnp.square(code - guess.mean)) / jnp.maximum(jnp.sum(spread), 1e-8)
            chance = jnp.zeros(())
        return loss, {"inverse_loss": loss, "inverse_accuracy": accuracy, "inverse_chance": chance}


def _is_image(space: gym_spaces.Space) -> bool:
    return isinstance(space, gym_spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _channels_first(shape: tuple[int, ...]) -> bool:
    return shape[0] < shape[2]


def _newest(space: gym_spaces.Space, x: Any, frames: int) -> Array:
    """`space` is that of the result: its channels tell which axis they are on."""
    x = jnp.asarray(x)
    if not frames or not _is_image(space):
        return x
    return x[..., -frames:, :, :] if _channels_first(space.shape or ()) else x[..., -frames:]


def _newest_space(space: gym_spaces.Space, frames: int) -> gym_spaces.Space:
    if isinstance(space, gym_spaces.Dict):
        return gym_spaces.Dict({name: _newest_space(inner, frames) for name, inner in space.spaces.items()})
    if not frames or not _is_image(space):
        return space
    assert isinstance(space, gym_spaces.Box)
    channels = space.shape[0] if _channels_first(space.shape) else space.shape[2]
    if not 0 < frames <= channels:
        raise OffroadError(f"frames is {frames}, but images have {channels} channels; 0 shows all of them")
    part = (slice(-frames, None),) if _channels_first(space.shape) else (..., slice(-frames, None))
    low = space.low[part]
    return gym_spaces.Box(low, space.high[part], low.shape, np.uint8)
