"""The deterministic policy of agents with real-valued actions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from offroad.nets.encoder import Encoder
from offroad.nets.mlp import MLP
from offroad.nets.relational import EncoderConfig


class Policy(eqx.Module):
    """Observation -> action in [-1, 1]."""

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
        """`hidden` are the widths of the layers between the encoder and the action."""
        encoder_key, head_key = jax.random.split(key)
        self.encoder = encoder.build(observation, encoder_key)
        sizes = (self.encoder.size, *hidden, *action.shape)
        self.head = MLP(sizes, key=head_key, activation="relu", init="uniform")

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch action"]:
        return jnp.tanh(self.head(self.encoder(observation)))
