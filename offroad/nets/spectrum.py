"""How simple a network is: the ranks of its weights and of its features.

    spectrum(agent, observations)  # {"policy.head.layers[0]/effective_rank": 3.1, "policy.head/srank": 41.0, ...}

`observations` is a batch that stays the same during training; ranks of features grow with its size, so keep it at one
size (256 rows are customary). A call costs some singular value decompositions: make it every thousand updates or so.
"""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Float, PyTree

from offroad.errors import OffroadError
from offroad.nets.critic import Critic
from offroad.nets.mlp import MLP
from offroad.nets.normalise import ObservationNorm
from offroad.nets.overparameterize import as_matrices, collapse, is_optimiser_state, weights_of


def effective_rank(singular: Float[Any, "*batch n"]) -> Float[Any, "*batch"]:
    """The entropy in nats of the singular values over their sum (Roy and Vetterli 2007): the logarithm of a number of
    directions. 0 for rank one, ln n where all are equal, NaN for the zero matrix."""
    singular = np.asarray(singular, float)
    with np.errstate(invalid="ignore"):
        p = singular / singular.sum(-1, keepdims=True)
    return -np.sum(p * np.log(np.where(p == 0, 1.0, p)), axis=-1)


def stable_rank(singular: Float[Any, "*batch n"]) -> Float[Any, "*batch"]:
    """The squared Frobenius norm over the squared spectral norm: 1 for rank one, n where all are equal."""
    squared = np.square(np.asarray(singular, float))
    with np.errstate(invalid="ignore"):
        return squared.sum(-1) / squared.max(-1)


def srank(singular: Float[Any, "*batch n"], delta: float = 0.01) -> Float[Any, "*batch"]:
    """How many of the largest singular values make up 1 - `delta` of the sum (Kumar et al. 2021, arXiv 2010.14498)."""
    largest_first = -np.sort(-np.asarray(singular, float), axis=-1)
    share = np.cumsum(largest_first, axis=-1) / largest_first.sum(-1, keepdims=True)
    # Rounding must not make the last value, whose share is 1, fall short.
    return 1.0 + np.sum(share < 1 - delta - 1e-12, axis=-1)


def singular_values(matrices: Float[Any, "*batch rows columns"]) -> Float[np.ndarray, "*batch n"]:
    """In float64 from the smaller of the two Gram matrices: faster than the decomposition itself, and
    exact to about 1e-8 of the largest value."""
    x = np.asarray(matrices, float)
    transposed = np.swapaxes(x, -1, -2)
    gram = x @ transposed if x.shape[-2] <= x.shape[-1] else transposed @ x
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))


def gram_rank(features: Float[Any, "*batch n size"]) -> Float[Any, "*batch"]:
    """The effective rank of the Gram matrix of features that are scaled to length 1 (Huh et al. 2023)."""
    features = np.asarray(features, float)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return effective_rank(np.square(singular_values(features / np.where(length == 0, 1.0, length))))


def spectrum(agent: PyTree[Any], observations: PyTree[Any]) -> dict[str, float]:
    """Ranks of every network of an agent but its targets, by the path of layer or network.

    For each layer's weight (products are collapsed first): `/effective_rank` in nats and `/stable_rank`. For the
    features that go into the last layer of each MLP behind an encoder: `/srank` (delta 0.01) and `/stable_rank` of the
    features themselves, `/effective_rank` of the Gram matrix of normalised features. Means over the members of an
    ensemble. Critics see actions drawn uniformly from [-1, 1], the same in every call. What no observation alone
    determines, such as the features behind a recurrent core, is left out.

    Raises `OffroadError` if there is no layer in `agent`.
    """
    found = _matrices(agent, observations)
    if not found:
        raise OffroadError(f"spectrum found no layer in a {type(agent).__name__}; expected an agent or a network")
    ranks = {}
    for name, matrices in found.items():
        path, kind = name.rsplit("/", 1)
        singular = singular_values(matrices)
        rank = gram_rank(matrices) if kind == "features" else effective_rank(singular)
        ranks[f"{path}/effective_rank"] = float(rank.mean())
        ranks[f"{path}/stable_rank"] = float(stable_rank(singular).mean())
        if kind == "features":
            ranks[f"{path}/srank"] = float(srank(singular).mean())
    return ranks


@eqx.filter_jit
def _matrices(agent: PyTree[Any], observations: PyTree[Any]) -> dict[str, Array]:
    """Weights as `path/weight` and features as `path/features`."""
    agent, found = collapse(agent), {}
    for path, node in _nodes(agent, ""):
        for name, groups, axes in weights_of(node):
            label = path if name == "weight" else f"{path}.{name}"
            found[f"{label}/weight"] = as_matrices(getattr(node, name), groups, axes)
        for name, features in _features(agent, node, observations):
            found[f"{path}.{name}/features"] = features
    return {name.lstrip("."): matrices for name, matrices in found.items()}


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All modules of an agent but targets and optimiser states."""
    if is_optimiser_state(node) or ".target" in path:
        return
    if isinstance(node, eqx.Module):
        yield path, node
    if weights_of(node):
        return
    stop = lambda x: x is not node  # noqa: E731
    for key, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=stop)[0]:
        if child is not node:
            yield from _nodes(child, path + jax.tree_util.keystr(key))


def _features(agent: Any, network: Any, observations: PyTree[Any]) -> Iterator[tuple[str, Array]]:
    """What goes into the last layer of each MLP that reads the encoder of `network`."""
    heads = {name: value for name, value in vars(network).items() if isinstance(value, MLP)}
    if not hasattr(network, "encoder") or not heads:
        return
    norms = [x for x in jax.tree.leaves(agent, is_leaf=_is_norm) if _is_norm(x)]
    if norms and getattr(agent.config, "normalise_observation", False):
        observations = norms[0](observations)
    stacked = next(iter(heads.values())).layers[0].weight.ndim - 2
    for name in heads:

        def of_one(network: Any, name: str = name) -> Array | None:
            head: MLP = getattr(network, name)
            x = network.encoder(_seen(agent, network, observations))
            if x.shape[-1] != head.layers[0].in_features:
                return None
            last = head.layers[-1]
            identity = eqx.tree_at(lambda m: (m.weight, m.bias), last, (jnp.eye(last.in_features), None))
            return eqx.tree_at(lambda m: m.layers[-1], head, identity)(x)

        features = eqx.filter_vmap(of_one)(network) if stacked else of_one(network)
        if features is not None:
            yield name, features


def _seen(agent: Any, network: Any, observations: PyTree[Any]) -> PyTree[Any]:
    """The observations as the network's encoder takes them: a critic's hold an action."""
    if not isinstance(network, Critic):
        return observations
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    space: gym_spaces.Box = agent.spaces.action
    n = jax.tree.leaves(observations)[0].shape[0]
    return {**parts, "action": jax.random.uniform(jax.random.key(0), (n, *space.shape), minval=-1, maxval=1)}


def _is_norm(node: Any) -> bool:
    return isinstance(node, ObservationNorm)
