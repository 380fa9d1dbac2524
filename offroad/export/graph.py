"""The deterministic policy as a graph of a few primitives: JAX's trace, reduced."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape

from offroad.agents import Agent
from offroad.errors import OffroadError
from offroad.nets.overparameterize import collapse
from offroad.train.collect import clip_to

WHOLE = 2**31 - 1  # the end of a slice that keeps all of an axis of symbolic size
Shape = tuple[Any, ...]  # sizes: integers, or an expression of the symbol `batch`


@dataclass(eq=False)
class Value:
    """What a node computes, or an input."""

    name: str
    shape: Shape
    dtype: np.dtype


Operand = Value | np.ndarray


@dataclass
class Node:
    op: str
    inputs: list[Operand]
    output: Value
    params: dict[str, Any]


@dataclass
class Graph:
    """A policy in static single assignment form: `inputs` are the observation's parts and then `memory`."""

    inputs: list[Value]
    memory: list[np.ndarray]  # at the start of an episode, of one environment
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Operand] = field(default_factory=list)  # the action and then the new memory

    @property
    def observation(self) -> list[Value]:
        return self.inputs[: len(self.inputs) - len(self.memory)]

    def add(self, op: str, *inputs: Operand, like: Any, **params: Any) -> Operand:
        """The value of a new node, of the shape and dtype of `like`; none if it would change nothing, or only
        transpose or reshape a constant."""
        x = inputs[0]
        if op in ("reshape", "slice") and tuple(x.shape) == tuple(like.shape):
            return x
        if op == "transpose" and isinstance(x, np.ndarray):
            return np.transpose(x, params["permutation"])
        if op == "reshape" and isinstance(x, np.ndarray):
            return np.reshape(x, params["shape"])
        output = Value(f"x{len(self.nodes)}", tuple(like.shape), np.dtype(like.dtype))
        self.nodes.append(Node(op, list(inputs), output, params))
        return output


def trace(agent: Agent) -> Graph:
    """The graph of `agent`'s deterministic policy; layers that are products are collapsed."""
    agent = collapse(agent)
    (batch,) = symbolic_shape("batch")

    def policy(observation: Any, memory: Any) -> Any:
        action, memory = agent.act(observation, None, memory)
        return clip_to(agent.spaces.action, action), memory

    def batched(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))

    memory = agent.initial_memory(1)
    example = jax.tree.map(lambda x: np.asarray(x)[None], agent.spaces.observation.sample())
    observation, state = jax.tree.map(batched, (example, memory))
    closed = jax.make_jaxpr(policy)(observation, state)
    names = [_name(path, "observation") for path, _ in jax.tree_util.tree_leaves_with_path(observation)]
    names += [_name(path, "memory") for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    inputs = [Value(name, x.aval.shape, x.aval.dtype) for name, x in zip(names, closed.jaxpr.invars)]
    graph = Graph(inputs, [np.asarray(x) for x in jax.tree.leaves(memory)])
    graph.outputs = _walk(graph, closed, graph.inputs)
    needed = {id(x) for x in graph.outputs}
    for node in reversed(graph.nodes):
        if id(node.output) in needed:
            needed |= {id(x) for x in node.inputs}
    graph.nodes = [node for node in graph.nodes if id(node.output) in needed]
    return graph


def _name(path: Any, whole: str) -> str:
    inner = jax.tree_util.keystr(path, simple=True, separator=".")
    return (inner if whole == "observation" else f"{whole}.{inner}") if path else whole


# --- from JAX's trace to a few primitives ----------------------------------------------------------------------------

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
SAME = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint"}


def _walk(graph: Graph, closed: Any, inputs: Sequence[Operand]) -> list[Operand]:
    """Adds the nodes of a jaxpr, with all calls inlined."""
    known: dict[Any, Operand] = dict(zip(closed.jaxpr.constvars, map(np.asarray, closed.consts)))
    known |= dict(zip(closed.jaxpr.invars, inputs))

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else known[atom]

    for equation in closed.jaxpr.eqns:
        operands, name, params = [read(x) for x in equation.invars], equation.primitive.name, equation.params
        avals = [v.aval for v in equation.outvars]
        constant = all(isinstance(x, np.ndarray) for x in operands)
        if name in CALLS:
            outputs = _walk(graph, params[CALLS[name]], operands)
        elif name == "scan" and params["length"] == 1:
            outputs = _one_step(graph, params, operands, avals)
        elif constant and all(isinstance(size, int) for aval in avals for size in aval.shape):
            found = equation.primitive.bind(*operands, **params)
            outputs = [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
        elif name == "split":
            ends = np.cumsum(params["sizes"])
            parts = zip(ends - params["sizes"], ends, avals)
            outputs = [_slice(graph, operands[0], params["axis"], int(i), int(j), like) for i, j, like in parts]
        elif name in SAME:
            outputs = operands
        elif name in LOWER:
            outputs = [LOWER[name](graph, operands, params, avals[0])]
        elif name in PRIMITIVES and not (name == "div" and avals[0].dtype.kind in "iu"):
            outputs = [graph.add(name, *operands, like=avals[0], **params)]
        else:
            raise OffroadError(
                f"the policy computes {name!r}, which cannot be exported; expected only "
                f"{', '.join(sorted(PRIMITIVES | LOWER.keys()))}"
            )
        known |= dict(zip(equation.outvars, outputs))
    return [read(x) for x in closed.jaxpr.outvars]


def _one_step(graph: Graph, params: dict[str, Any], operands: list[Operand], avals: list[Any]) -> list[Operand]:
    """The body of a loop of one iteration, as which recurrent networks act."""
    first, carried = params["num_consts"] + params["num_carry"], params["num_carry"]
    inner = [v.aval for v in params["jaxpr"].jaxpr.invars[first:]]
    steps = [graph.add("reshape", x, like=like, shape=like.shape) for x, like in zip(operands[first:], inner)]
    outputs = _walk(graph, params["jaxpr"], [*operands[:first], *steps])
    stacked = zip(outputs[carried:], avals[carried:])
    return outputs[:carried] + [graph.add("reshape", x, like=like, shape=like.shape) for x, like in stacked]


def _slice(graph: Graph, x: Operand, axis: int, start: int, end: int, like: Any) -> Operand:
    starts, ends = [0] * len(x.shape), [_size(n) for n in x.shape]
    starts[axis], ends[axis] = start, end
    return graph.add("slice", x, like=like, starts=starts, ends=ends, steps=[1] * len(starts))


def _size(size: Any) -> int:
    return size if isinstance(size, int) else WHOLE


def _lower_slice(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    ends = [_size(n) for n in params["limit_indices"]]
    steps = list(params["strides"] or [1] * len(ends))
    return graph.add("slice", x[0], like=like, starts=list(params["start_indices"]), ends=ends, steps=steps)


def _lower_gather(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    """What policies gather, as a slice: `x[i]`, `x[:, a:b, c:d:e]` and their like with constant indices."""
    numbers, index = params["dimension_numbers"], x[1]
    axes = tuple(numbers.start_index_map)
    starts, steps, shape = [0] * len(x[0].shape), [1] * len(x[0].shape), list(params["slice_sizes"])
    found = isinstance(index, np.ndarray)
    if isinstance(index, np.ndarray) and index.size == len(axes):  # one block
        for axis, start in zip(axes, index.ravel()):
            starts[axis] = int(start)
    elif isinstance(index, np.ndarray):  # single elements, on a regular grid whose axes stay where they are
        values = [np.unique(index[..., i]) for i in range(len(axes))]
        grid = np.stack(np.meshgrid(*values, indexing="ij"), -1)
        places = tuple(axis for axis in range(len(like.shape)) if axis not in numbers.offset_dims)
        evenly = all(len(np.unique(np.diff(v))) <= 1 for v in values)
        found = evenly and np.array_equal(grid, index) and places == axes == tuple(numbers.collapsed_slice_dims)
        for axis, v in zip(axes, values):
            starts[axis], shape[axis] = int(v[0]), len(v)
            steps[axis] = int(v[1] - v[0]) if len(v) > 1 else 1
    if not found:
        raise OffroadError("the policy computes 'gather' with variable or irregular indices, which cannot be exported")
    ends = [i + (n - 1) * k + 1 if isinstance(n, int) else WHOLE for i, n, k in zip(starts, shape, steps)]
    row = jax.ShapeDtypeStruct(tuple(shape), like.dtype)
    part = graph.add("slice", x[0], like=row, starts=starts, ends=ends, steps=steps)
    return graph.add("reshape", part, like=like, shape=tuple(like.shape))


def _lower_broadcast(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    kept = dict(zip(params["broadcast_dimensions"], x[0].shape))
    shape = tuple(kept.get(axis, 1) for axis in range(len(like.shape)))
    y = graph.add("reshape", x[0], like=jax.ShapeDtypeStruct(shape, like.dtype), shape=shape)
    return y if shape == tuple(like.shape) else graph.add("broadcast", y, like=like, shape=tuple(like.shape))


def _lower_convolution(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    """With channels first, as ONNX has it."""
    numbers = params["dimension_numbers"]
    dilated = any(d != 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
    if dilated or params["feature_group_count"] != 1 or params["batch_group_count"] != 1 or len(like.shape) != 4:
        raise OffroadError(
            "the policy has a dilated, grouped or not two-dimensional convolution, which cannot be exported"
        )

    def transposed(y: Operand, order: Sequence[int]) -> Operand:
        shape = jax.ShapeDtypeStruct(tuple(y.shape[i] for i in order), like.dtype)
        return graph.add("transpose", y, like=shape, permutation=tuple(order))

    images, kernels = transposed(x[0], numbers.lhs_spec), transposed(x[1], numbers.rhs_spec)
    first = jax.ShapeDtypeStruct(tuple(like.shape[i] for i in numbers.out_spec), like.dtype)
    strides, padding = list(params["window_strides"]), [list(p) for p in params["padding"]]
    y = graph.add("conv", images, kernels, like=first, strides=strides, padding=padding)
    return graph.add("transpose", y, like=like, permutation=tuple(int(i) for i in np.argsort(numbers.out_spec)))


def _lower_power(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    return graph.add("pow", x[0], np.asarray(params["y"], like.dtype), like=like)


def _composed(*steps: tuple[str, float | None]) -> Callable[..., Operand]:
    """A function of one argument as a chain of primitives, each with a constant second operand or none."""

    def lower(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
        y = x[0]
        for op, constant in steps:
            y = graph.add(op, y, *([] if constant is None else [np.asarray(constant, like.dtype)]), like=like)
        return y

    return lower


def _reshape(graph: Graph, x: list[Operand], params: dict[str, Any], like: Any) -> Operand:
    return graph.add("reshape", x[0], like=like, shape=tuple(like.shape))


LOWER: dict[str, Callable[..., Operand]] = {
    "slice": _lower_slice,
    "gather": _lower_gather,
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _lower_broadcast,
    "conv_general_dilated": _lower_convolution,
    "integer_pow": _lower_power,
    "square": _composed(("pow", 2.0)),
    "rsqrt": _composed(("pow", -0.5)),
    "expm1": _composed(("exp", None), ("sub", 1.0)),
    "log1p": _composed(("add", 1.0), ("log", None)),
    "clamp": lambda g, x, _, like: g.add("min", g.add("max", x[1], x[0], like=like), x[2], like=like),
    "ne": lambda g, x, _, like: g.add("not", g.add("eq", *x, like=like), like=like),
    "select_n": lambda g, x, _, like: g.add("where", x[0], x[2], x[1], like=like),
}

# What the back ends know under JAX's own names, besides what `LOWER` makes of the others.
PRIMITIVES = {"add", "sub", "mul", "div", "pow", "max", "min", "neg", "abs", "exp", "log", "sqrt"}
PRIMITIVES |= {
    "tanh",
    "logistic",
    "eq",
    "lt",
    "le",
    "gt",
    "ge",
    "and",
    "or",
    "not",
    "convert_element_type",
    "transpose",
}
PRIMITIVES |= {"concatenate", "reduce_sum", "reduce_max", "reduce_min", "argmax", "dot_general"}
