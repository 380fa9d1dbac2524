"""Networks for observations of objects: graph attention, which takes any number of them in any order, and slots.

An entity observation is a `Dict` with `objects` [n, d], optionally `goals` [n, g], where the first g <= d features of
an object are what its goal is compared with, and optionally `mask` [n], 1 where there is an object and 0 where there is
padding. All other entries are global: a robot's state, or a critic's `action`.
"""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from offroad.errors import OffroadError, unknown
from offroad.nets.encoder import Encoder, Flat
from offroad.nets.mlp import linear

CLIP = 5.0
FORBIDDEN = -1e9  # finite, so that a softmax over nothing but padding has gradients


@dataclass(frozen=True)
class Relational:
    """Attention between the objects and then over them (Li et al. 2020, arXiv 1912.11032).

    No parameter depends on the number of objects, their order changes nothing, and padding has no influence; where all
    is padding the features are constant. Each object is a node [globals | object | goal | goal - object], every number
    x of it (but for actions, which have unit scale) as clip(s * x, -5, 5) for each s of `scales`: with (1, 50) a
    metre and a centimetre are both visible. The features of a node pass `embed_layers` layers, then `blocks` rounds of
    attention of each node to all, and are summed by the attention of one learned query. `PAPER` and `LEAN` are presets.
    """

    scales: tuple[float | int, ...] = (1.0,)
    width: int = 128  # of every layer, and the number of features
    embed_layers: int = 2
    blocks: int = 1
    heads: int = 4  # parts of the width that attend on their own
    attention: str = "dot"  # or "additive"
    layer_norm: bool = False

    def __post_init__(self):
        if self.attention not in ("dot", "additive"):
            raise unknown("attention", self.attention, ("dot", "additive"))
        if min(self.width, self.heads, self.embed_layers) < 1 or self.blocks < 0 or self.width % self.heads:
            raise OffroadError(
                f"Relational has width {self.width}, {self.heads} heads, {self.embed_layers} embed_layers and "
                f"{self.blocks} blocks; give a width that the heads divide, at least one layer and no negative number"
            )

    def build(self, space: spaces.Space, key: PRNGKeyArray) -> Encoder:
        """Raises `OffroadError` if `space` is no entity observation."""
        return _Relational(space, self, key)


LEAN = Relational()  # one round instead of three, in matrix products only
PAPER = Relational(width=64, embed_layers=1, blocks=3, heads=1, attention="additive", layer_norm=True)


@dataclass(frozen=True)
class Slots:
    """The features that `Relational` sees, side by side in the order of the objects: what an MLP needs for a baseline.

    [globals | each object, goal and goal - object | mask], with zeros for padding. Of one number of objects only.
    """

    scales: tuple[float | int, ...] = (1.0,)

    def build(self, space: spaces.Space, key: PRNGKeyArray) -> Encoder:
        """Raises `OffroadError` if `space` is no entity observation."""
        return _Slots(space, self, key)


EncoderConfig = Flat | Relational | Slots


class _Entities(eqx.Module):
    """An observation -> globals [*batch, G], objects with their goals [*batch, n, E] (zero where masked), mask."""

    others: dict[str, Encoder]
    scales: tuple[float | int, ...] = eqx.field(static=True)
    global_size: int = eqx.field(static=True)
    object_size: int = eqx.field(static=True)

    def __init__(self, space: spaces.Space, scales: tuple[float | int, ...], key: PRNGKeyArray):
        _, d, g = _shape(space)  # nothing here may depend on n
        others = {k: s for k, s in space.spaces.items() if k not in ("objects", "goals", "mask")}  # pyright: ignore[reportAttributeAccessIssue]
        keys = jax.random.split(key, len(others) + 1)
        self.others = {name: Flat().build(others[name], k) for name, k in zip(sorted(others), keys)}
        self.scales = scales
        self.object_size = (d + 2 * g) * len(scales)
        self.global_size = sum(e.size * (1 if k == "action" else len(scales)) for k, e in self.others.items())

    def __call__(
        self, observation: PyTree[Any]
    ) -> tuple[Float[Array, "*batch G"], Float[Array, "*batch n E"], Bool[Array, "*batch n"]]:
        x = jnp.asarray(observation["objects"]).astype(jnp.float32)
        mask = jnp.asarray(observation["mask"]) > 0 if "mask" in observation else jnp.ones(x.shape[:-1], bool)
        if "goals" in observation:
            goals = jnp.asarray(observation["goals"]).astype(jnp.float32)
            x = jnp.concatenate([x, goals, goals - x[..., : goals.shape[-1]]], axis=-1)
        shared = [jnp.zeros((*x.shape[:-2], 0))]
        for name, encoder in self.others.items():
            features = encoder(observation[name])
            shared.append(features if name == "action" else self._scale(features))
        return jnp.concatenate(shared, axis=-1), self._scale(jnp.where(mask[..., None], x, 0.0)), mask

    def _scale(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch k"]:
        return jnp.concatenate([jnp.clip(s * x, -CLIP, CLIP) for s in self.scales], axis=-1)


class _Relational(Encoder):
    entities: _Entities
    embed: tuple[eqx.nn.Linear, ...]
    norm: eqx.nn.LayerNorm | None
    blocks: "tuple[_Block, ...]"
    query: Float[Array, " width"]
    readout: "_Attention"
    size: int = eqx.field(static=True)

    def __init__(self, space: spaces.Space, config: Relational, key: PRNGKeyArray):
        entities_key, embed_key, blocks_key, query_key, readout_key = jax.random.split(key, 5)
        self.entities = _Entities(space, config.scales, entities_key)
        widths = [self.entities.global_size + self.entities.object_size] + [config.width] * config.embed_layers
        keys = jax.random.split(embed_key, config.embed_layers)
        self.embed = tuple(eqx.nn.Linear(i, o, key=k) for i, o, k in zip(widths[:-1], widths[1:], keys, strict=True))
        self.norm = eqx.nn.LayerNorm(config.width) if config.layer_norm else None
        self.blocks = tuple(_Block(config, k) for k in jax.random.split(blocks_key, config.blocks))
        # The paper's query begins near zero, where a product would learn slowly.
        bound = 3e-3 if config.attention == "additive" else 1.0
        self.query = jax.random.uniform(query_key, (config.width,), minval=-bound, maxval=bound)
        self.readout = _Attention(config, readout_key)
        self.size = config.width

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        shared, objects, mask = self.entities(observation)
        shared = jnp.broadcast_to(shared[..., None, :], (*objects.shape[:-1], shared.shape[-1]))
        nodes = linear(self.embed[0], jnp.concatenate([shared, objects], axis=-1))
        for layer in self.embed[1:]:
            nodes = linear(layer, jax.nn.leaky_relu(nodes))
        nodes = jax.nn.leaky_relu(nodes) if self.norm is None else _normalise(self.norm, nodes)
        for block in self.blocks:
            nodes = block(nodes, mask)
        return self.readout(self.query, nodes, nodes, mask)


class _Block(eqx.Module):
    """Each node attends to all nodes and adds what it finds."""

    project: eqx.nn.Linear
    attention: "_Attention"
    norm: eqx.nn.LayerNorm | None

    def __init__(self, config: Relational, key: PRNGKeyArray):
        project_key, attention_key = jax.random.split(key)
        self.project = eqx.nn.Linear(config.width, 3 * config.width, key=project_key)
        self.attention = _Attention(config, attention_key)
        self.norm = eqx.nn.LayerNorm(config.width) if config.layer_norm else None

    def __call__(
        self, nodes: Float[Array, "*batch n width"], mask: Bool[Array, "*batch n"]
    ) -> Float[Array, "*batch n width"]:
        query, context, memory = jnp.split(linear(self.project, nodes), 3, axis=-1)
        context, memory, mask = context[..., None, :, :], memory[..., None, :, :], mask[..., None, :]  # for each query
        nodes = jax.nn.leaky_relu(nodes + self.attention(query, context, memory, mask))
        return nodes if self.norm is None else _normalise(self.norm, nodes)


class _Attention(eqx.Module):
    """Sums over j the memory_j by the weights a_j that the query gives to context_j; then leaky ReLU, a linear layer.

    In each head a_j = softmax_j of q . c_j / sqrt(width of the head), or, if additive, of w . tanh(c_j + W q) / t, with
    a learned temperature t.
    """

    additive: "_Additive | None"
    reduce: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, config: Relational, key: PRNGKeyArray):
        reduce_key, additive_key = jax.random.split(key)
        self.additive = _Additive(config.width, additive_key) if config.attention == "additive" else None
        self.reduce = eqx.nn.Linear(config.width, config.width, key=reduce_key)
        self.heads = config.heads

    def __call__(
        self,
        query: Float[Array, "*#batch width"],
        context: Float[Array, "*#batch n width"],
        memory: Float[Array, "*#batch n width"],
        mask: Bool[Array, "*#batch n"],
    ) -> Float[Array, "..."]:
        part = query.shape[-1] // self.heads
        # Times this [width, heads] matrix sums each head's part. On a CPU this and plain products beat einsum, which
        # makes many tiny matrix products of few objects.
        parts = jnp.repeat(jnp.eye(self.heads), part, axis=0)
        if self.additive is None:
            scores = (query[..., None, :] * context) @ parts / math.sqrt(part)
        else:
            scores = self.additive(query, context) @ parts
        present = mask[..., None]
        weights = jax.nn.softmax(jnp.where(present, scores, FORBIDDEN), axis=-2) * present
        found = jnp.sum((weights @ parts.T) * memory, axis=-2)
        return linear(self.reduce, jax.nn.leaky_relu(found))


class _Additive(eqx.Module):
    """The terms w * tanh(c_j + W q) / t, which are yet to be summed over the width."""

    transform: eqx.nn.Linear
    weight: Float[Array, " width"]
    temperature: Float[Array, ""]

    def __init__(self, width: int, key: PRNGKeyArray):
        transform_key, weight_key = jax.random.split(key)
        self.transform = eqx.nn.Linear(width, width, key=transform_key)
        bound = 1 / math.sqrt(width)
        self.weight = jax.random.uniform(weight_key, (width,), minval=-bound, maxval=bound)
        self.temperature = jnp.ones(())

    def __call__(self, query: Float[Array, "*#batch width"], context: Float[Array, "*#batch n width"]) -> Array:
        return jnp.tanh(context + linear(self.transform, query)[..., None, :]) * (self.weight / self.temperature)


class _Slots(Encoder):
    entities: _Entities
    size: int = eqx.field(static=True)

    def __init__(self, space: spaces.Space, config: Slots, key: PRNGKeyArray):
        self.entities = _Entities(space, config.scales, key)
        self.size = self.entities.global_size + _shape(space)[0] * (self.entities.object_size + 1)

    def __call__(self, observation: PyTree[Any]) -> Float[Array, "*batch size"]:
        shared, objects, mask = self.entities(observation)
        flat = objects.reshape((*objects.shape[:-2], -1))
        return jnp.concatenate([shared, flat, mask.astype(jnp.float32)], axis=-1)


def _normalise(norm: eqx.nn.LayerNorm, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    return jnp.vectorize(norm, signature="(w)->(w)")(x)


def _shape(space: spaces.Space) -> tuple[int, int, int]:
    """n, d and g (0 without goals) of an entity observation."""

    def bad(found: str) -> OffroadError:
        return OffroadError(
            f"Relational and Slots read observations of objects, but {found}; use Flat, or arrange the observation as "
            "Dict(objects=Box[n, d], goals=Box[n, g <= d], mask=MultiBinary(n), ...), goals and mask being optional"
        )

    if not isinstance(space, spaces.Dict):
        raise bad(f"this space is a {type(space).__name__} of shape {space.shape}")
    if "objects" not in space.spaces:
        raise bad(f"this Dict has no 'objects', only {sorted(space.spaces)}")
    shapes = {}
    for name, ndim in (("objects", 2), ("goals", 2), ("mask", 1)):
        if (part := space.spaces.get(name)) is not None:
            shapes[name] = part.shape or ()
            if len(shapes[name]) != ndim:
                raise bad(f"{name!r} is a {type(part).__name__} of shape {part.shape}")
            if shapes[name][0] != shapes["objects"][0]:
                raise bad(f"{name!r} has shape {shapes[name]} and 'objects' {shapes['objects']}")
    (n, d), (_, g) = shapes["objects"], shapes.get("goals", (0, 0))
    if g > d:
        raise bad(f"'goals' has shape {shapes['goals']} and 'objects' {shapes['objects']}")
    return n, d, g
