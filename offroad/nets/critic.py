"""The critic of agents with real-valued actions."""

from typing import Any

import equinox as eqx
import jax
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from offroad.errors import OffroadError
from offroad.nets.encoder import Encoder
from offroad.nets.mlp import MLP
from offroad.nets.relational import EncoderConfig


class Critic(eqx.Module):
    """Observation and action in [-1, 1] -> value.

    The action enters as one more part of the observation, named `action`: `encoder` decides how the two meet. A flat
    one puts them side by side, one of entities shows the action to every entity.
    """

    encoder: Encoder
    head: MLP

    def __init__(
        self,
        observation: spaces.Space,
        action: spaces.Box,
        encoder: EncoderConfig,
        hidden: tuple[int, ...],
        key: PRNGKeyArray,
    ):
        """`hidden` are the widths of the layers between the encoder and the value."""
        parts = observation.spaces if isinstance(observation, spaces.Dict) else {"observation": observation}
        if "action" in parts:
            raise OffroadError(
                "the observation has an entry named 'action', the name under which critics see the action; rename it"
            )
        encoder_key, head_key = jax.random.split(key)
        unit = spaces.Box(-1, 1, action.shape)
        self.encoder = encoder.build(spaces.Dict({**parts, "action": unit}), encoder_key)
        self.head = MLP((self.encoder.size, *hidden, 1), key=head_key, activation="relu", init="uniform")

    def __call__(self, observation: PyTree[Any], action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        parts = observation if isinstance(observation, dict) else {"observation": observation}
        return self.head(self.encoder({**parts, "action": action}))[..., 0]
