"""Layers whose weight is a product of several matrices while they learn, and one matrix afterwards.

The functions that a network can represent stay the same; how it learns does not: gradient descent on a product tends to
products of low rank (Huh et al. 2023, arXiv 2103.10427; Arora et al. 2019, arXiv 1905.13655).

    agent = expand(BC.create(spaces, config, key), 2, key=key)   # before training
    ...                                                          # train it as any other agent
    agent = collapse(agent)                                      # the same classes and shapes as before

`expand` puts a `Product` where a layer holds its weight and leaves all else alone, so that the networks of this library
work as they are. The factors are multiplied where the weight is used, before it meets the batch: what that costs does
not depend on the batch. Code that needs a true array takes `collapse(network)` in its loss; the gradient is the same.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from offroad.errors import OffroadError


class Product(eqx.Module):
    """A weight `[outputs, inputs / groups, *kernel]`, kept as a product of matrices for each group of outputs.

    `factors[0]` reads the inputs, of all kernel positions side by side, and the others act on channels alone. So a
    convolution keeps its stride, padding and dilation in the first factor, and is exact at the borders. With `residual`
    each square factor W after the first stands for I + W. Arrays of several networks may be stacked in front.

    It is used like an array: `x @ p.T`, `p @ x`, `p[i]`, `jnp.asarray(p)`, with gradients for the factors.
    """

    factors: tuple[Float[Array, "*stack groups _ _"], ...]
    kernel: tuple[int, ...] = eqx.field(static=True)  # the shape of one weight
    residual: bool = eqx.field(static=True)

    def value(self) -> Array:
        """The product, formed in float32 at least and returned in the factors' own type."""
        stack, dtype = self.factors[0].shape[:-3], self.factors[0].dtype
        chain = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in self.factors]
        if self.residual:
            chain[1:] = [x + jnp.eye(x.shape[-1]) if x.shape[-2] == x.shape[-1] else x for x in chain[1:]]
        if self.factors[-1].shape[-2] < self.factors[0].shape[-1]:  # from the narrower end
            product = chain.pop()
            while chain:
                product = _multiply(product, chain.pop())
        else:
            product = chain.pop(0)
            while chain:
                product = _multiply(chain.pop(0), product)
        return product.reshape(stack + self.kernel).astype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.factors[0].shape[:-3] + self.kernel

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self.factors[0].dtype

    @property
    def T(self) -> Array:
        return self.value().T

    def transpose(self, *axes: int) -> Array:
        return self.value().transpose(*axes)

    def __getitem__(self, index: Any) -> Array:
        return self.value()[index]

    def __matmul__(self, x: Array) -> Array:
        return self.value() @ x

    def __jax_array__(self) -> Array:
        return self.value()


def _multiply(x: Array, y: Array) -> Array:
    """In full precision: accelerators would otherwise round the operands."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


# What each layer multiplies with: the name of the weight, its groups of outputs (gates of a recurrent cell are apart)
# and its number of axes, beyond which arrays are stacked.
Weights = list[tuple[str, int, int]]
_WEIGHTS: dict[type, Callable[[Any], Weights]] = {
    eqx.nn.Linear: lambda layer: [("weight", 1, 2)],
    eqx.nn.Conv: lambda layer: [("weight", layer.groups, 2 + layer.num_spatial_dims)],
    eqx.nn.ConvTranspose: lambda layer: [("weight", layer.groups, 2 + layer.num_spatial_dims)],
    eqx.nn.GRUCell: lambda layer: [("weight_ih", 3, 2), ("weight_hh", 3, 2)],
    eqx.nn.LSTMCell: lambda layer: [("weight_ih", 4, 2), ("weight_hh", 4, 2)],
}


def weights_of(node: Any) -> Weights:
    """The names, groups and numbers of axes of a layer's weights; none where `node` is no layer."""
    return next((names(node) for kind, names in _WEIGHTS.items() if isinstance(node, kind)), [])


def is_optimiser_state(node: Any) -> bool:
    """Optax's states are named tuples, and nothing in a network is."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def expand(
    model: PyTree[Any],
    depth: int,
    *,
    key: Key[Array, ""],
    where: Callable[[str], bool] = lambda path: True,
    width: float | int = 1.0,
    residual: bool = False,
) -> Any:
    """`model`, yet to be trained, with the weights of its layers as products of `depth` factors that are drawn anew.

    `model` is a network, or an agent with its optimiser states and target networks: a target that equals an expanded
    network becomes the same product, and optimisers start on the factors. Layers are Equinox's: `Linear` (so also
    attention), `Conv`, `ConvTranspose`, `GRUCell` and `LSTMCell`. Biases stay as they are.

    Factors are normal with variance 1 / fan-in, but for one, whose scale gives the product the mean square of the
    weight that it replaces: outputs begin with the same variance, and spectra are already skewed.

    **Arguments:** `where`: which layers, by their path, such as `.policy.head.layers[0]`. In agents it is wise to leave
    critics alone (`lambda path: "critic" not in path`): bootstrapping lowers their rank by itself (Kumar et al. 2021,
    arXiv 2010.14498). `width`: of the inner factors in units of the layer's outputs; a small one bounds the rank.
    `residual`: square factors after the first are I + W, so that many of them do not lower the rank as much.

    Raises `OffroadError` if `depth` or `width` is too small, and where there is nothing to expand.
    """
    if depth < 2 or width <= 0:
        raise OffroadError(
            f"expand got depth {depth} and width {width}; expected at least 2 factors and a width above 0"
        )
    drawn: dict[tuple[Any, bytes], Product] = {}

    def draw(path: str, weight: Any, groups: int, axes: int) -> Any:
        if isinstance(weight, Product):
            raise OffroadError(f"the layer {path or 'itself'} is a product already; collapse the model first")
        if where(path):
            k = jax.random.fold_in(key, len(drawn))
            drawn[_identity(weight)] = _draw(weight, groups, axes, depth, width, residual, k)
        return weight

    _map_weights(draw, model)
    if not drawn:
        raise OffroadError(
            "expand found no layer; expected Equinox layers (Linear, Conv, ...) at paths that where takes"
        )
    # By value and not by path, so that target networks remain copies.
    expanded = _map_weights(lambda path, weight, groups, axes: drawn.get(_identity(weight), weight), model)
    return _with_optimisers(model, expanded)


def collapse(model: PyTree[Any]) -> Any:
    """`model` with every product multiplied out: classes, shapes and types as before `expand`; differentiable.

    Optimiser states of expanded networks start anew, as moments of factors say nothing about their product.
    """

    def reset(state: Any) -> Any:
        whole = jax.tree.map(_value, state, is_leaf=_is_product)
        return jax.tree.map(jnp.zeros_like, whole) if _has_product(state) else state

    stop = lambda node: _is_product(node) or is_optimiser_state(node)  # noqa: E731
    return jax.tree.map(lambda x: reset(x) if is_optimiser_state(x) else _value(x), model, is_leaf=stop)


def schatten(model: PyTree[Any], p: float | int = 1.0) -> Float[Array, ""]:
    """The sum of all singular values to the power `p` over the weights of a model's layers, to be added to a loss.

    The explicit way to a low rank: with `p = 1`, the nuclear norm, the strength is one number. Weight decay of `d`
    balanced factors is the same as `p = 2 / d`. Below `p = 1` singular values are kept from zero, where the
    gradient is infinite, by 1e-6. Convolutions count as matrices `[outputs, inputs / groups * kernel]`.
    """
    total: Any = jnp.zeros(())

    def add(path: str, weight: Any, groups: int, axes: int) -> Any:
        nonlocal total
        singular = jnp.linalg.svd(as_matrices(jnp.asarray(weight), groups, axes), compute_uv=False)
        total += jnp.sum((jnp.square(singular) + (1e-12 if p < 1 else 0.0)) ** (p / 2) if p != 1 else singular)
        return weight

    _map_weights(add, model)
    return total


def as_matrices(weight: Float[Array, "..."], groups: int, axes: int) -> Float[Array, "*stack groups out in"]:
    """A weight as one matrix for each group, with what is stacked in front of its `axes`."""
    stack, (outputs, *rest) = weight.shape[:-axes], weight.shape[-axes:]
    return weight.reshape(*stack, groups, outputs // groups, math.prod(rest))


def _map_weights(change: Callable[[str, Any, int, int], Any], model: PyTree[Any]) -> Any:
    """`model` with each weight w of a layer replaced by `change(path, w, groups, axes)`, optimiser states apart."""

    def layer(path: Any, node: Any) -> Any:
        for name, groups, axes in weights_of(node):
            new = change(jax.tree_util.keystr(path), getattr(node, name), groups, axes)
            node = eqx.tree_at(lambda n, name=name: getattr(n, name), node, new, is_leaf=_is_product)
        return node

    stop = lambda node: bool(weights_of(node)) or is_optimiser_state(node)  # noqa: E731
    return jax.tree_util.tree_map_with_path(layer, model, is_leaf=stop)


def _identity(weight: Array) -> tuple[Any, bytes]:
    return weight.shape, np.asarray(weight).tobytes()


def _draw(
    weight: Array, groups: int, axes: int, depth: int, width: float | int, residual: bool, key: Key[Array, ""]
) -> Product:
    stack, kernel = weight.shape[:-axes], weight.shape[-axes:]
    rows, columns = kernel[0] // groups, math.prod(kernel[1:])
    inner = max(1, round(width * rows))
    sizes = [columns] + [inner] * (depth - 1) + [rows]
    shapes = [(*stack, groups, o, i) for i, o in pairwise(sizes)]
    factors = [
        jax.random.normal(k, s, weight.dtype) / math.sqrt(s[-1]) for k, s in zip(jax.random.split(key, depth), shapes)
    ]
    square = [residual and i > 0 and s[-1] == s[-2] for i, s in enumerate(shapes)]
    # I + W with W of variance 1 / (depth * fan-in) multiplies the variance by 1 + 1 / depth.
    factors = [x / math.sqrt(depth) if same else x for x, same in zip(factors, square)]
    growth = (1 + 1 / depth) ** sum(square)
    of_product = jnp.mean(jnp.square(weight), axis=tuple(range(-axes, 0))) * columns / growth
    scaled = 0 if square[-1] else depth - 1
    factors[scaled] *= jnp.sqrt(of_product).reshape(*stack, 1, 1, 1).astype(weight.dtype)
    return Product(tuple(factors), kernel, residual)


def _with_optimisers(model: PyTree[Any], expanded: PyTree[Any]) -> Any:
    """`expanded` with fresh optimiser states for the networks that changed.

    A state holds trees of the same structure as the network that it belongs to, so it is known by that.
    """
    new: dict[Any, list[Any]] = {}
    for old, now in _modules(model, expanded):
        alike = new.setdefault(_signature(old), [])
        if not any(_signature(x) == _signature(now) for x in alike):
            alike.append(now)

    def known(node: Any) -> bool:
        return isinstance(node, eqx.Module) and _signature(node) in new

    def renew(node: Any) -> Any:
        if not known(node):
            return node
        if len(alike := new[_signature(node)]) > 1:
            raise OffroadError(
                f"two networks of the class {type(node).__name__} and of one shape differ in what `where` selects, so "
                "that their optimiser states cannot be told apart; expand both or neither"
            )
        return alike[0]

    def state(node: Any) -> Any:
        if not is_optimiser_state(node):
            return node
        whole = jax.tree.map(renew, node, is_leaf=known)
        return jax.tree.map(jnp.zeros_like, whole) if _has_product(whole) else node

    return jax.tree.map(state, expanded, is_leaf=is_optimiser_state)


def _modules(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """Every module of a model with its counterpart, from the outside inwards."""
    if is_optimiser_state(old):
        return
    if isinstance(old, eqx.Module):
        yield old, new
    children = [] if weights_of(old) else eqx.tree_flatten_one_level(old)[0]
    if not (len(children) == 1 and children[0] is old):
        for pair in zip(children, eqx.tree_flatten_one_level(new)[0]):
            yield from _modules(*pair)


def _signature(node: Any) -> Any:
    leaves, structure = jax.tree.flatten(node)
    return structure, tuple((x.shape, x.dtype) for x in leaves)


def _is_product(node: Any) -> bool:
    return isinstance(node, Product)


def _has_product(tree: Any) -> bool:
    return any(map(_is_product, jax.tree.leaves(tree, is_leaf=_is_product)))


def _value(node: Any) -> Any:
    return node.value() if isinstance(node, Product) else node
