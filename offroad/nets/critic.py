"""The critic of agents with real-valued actions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from offroad.errors import OffroadError
from offroad.nets.encoder import Encoder, columns
from offroad.nets.mlp import MLP, linear
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
        layer_norm: bool = False,
    ):
        """`hidden` are the widths of the layers between the encoder and the value, `layer_norm` is `MLP`'s."""
        parts = observation.spaces if isinstance(observation, spaces.Dict) else {"observation": observation}
        if "action" in parts:
            raise OffroadError(
                "the observation has an entry named 'action', the name under which critics see the action; rename it"
            )
        encoder_key, head_key = jax.random.split(key)
        unit = spaces.Box(-1, 1, action.shape)
        self.encoder = encoder.build(spaces.Dict({**parts, "action": unit}), encoder_key)
        sizes = (self.encoder.size, *hidden, 1)
        self.head = MLP(sizes, key=head_key, activation="relu", init="uniform", layer_norm=layer_norm)

    def __call__(self, observation: PyTree[Any], action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        return self.head(self.encoder(self._parts(observation, action)))[..., 0]

    def _parts(self, observation: PyTree[Any], action: Float[Array, "*batch action"]) -> dict[str, Any]:
        parts = observation if isinstance(observation, dict) else {"observation": observation}
        return {**parts, "action": action}

    def values(
        self, observation: PyTree[Any], actions: Float[Array, "samples *batch action"]
    ) -> Float[Array, "samples *batch"]:
        """The values of several actions for every observation: `self(observation, actions[i])` for every `i`.

        Where the encoder puts action and observation side by side, the observation goes through it and through the
        first layer once: what remains for every action is its own few columns of that layer.
        """
        place = columns(self.encoder, "action")
        if place is None:
            return jax.vmap(self, in_axes=(None, 0))(observation, actions)
        shared = self.encoder(self._parts(observation, jnp.zeros_like(actions[0])))
        first = self.head.layers[0]
        return self.head.after_first(linear(first, shared) + actions @ first.weight[:, place].T)[..., 0]


def values_of(
    critics: Critic, observation: PyTree[Any], actions: Float[Array, "samples states action"]
) -> Float[Array, "critics samples states"]:
    """`Critic.values` of each of several stacked critics."""
    return eqx.filter_vmap(lambda critic: critic.values(observation, actions))(critics)
