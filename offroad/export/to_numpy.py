"""A policy's graph as Python source that needs NumPy alone."""

import string
from collections.abc import Callable

import numpy as np

from offroad.export.graph import WHOLE, Graph, Node, Operand, Shape, Value

MODULE = '''\
"""{about}: the deterministic policy, exported by offroad. It needs NumPy alone.

    policy = Policy("policy.npz")
    policy.reset()                  # at the start of every episode
    action = policy(observation)    # one observation, or a batch of them along a leading axis
"""

import numpy as np

INPUTS = {inputs}  # name: dtype, axes of one observation


class Policy:
    def __init__(self, path="policy.npz"):
        with np.load(path) as file:
            arrays = [file[str(i)] for i in range(len(file.files))]
        self._constants, self._initial = arrays[:{constants}], arrays[{constants}:]
        self.reset()

    def reset(self):
        """Forgets what happened; policies without memory need no reset."""
        self._memory = None

    def __call__(self, observation):
        """The action, in the environment's units and bounds. A Dict observation is a dict of its parts."""
        if not isinstance(observation, dict):
            observation = {{"observation": observation}}
        arrays = []
        for name, (dtype, _) in INPUTS.items():
            part = observation
            for key in name.split("."):
                part = part[key]
            arrays.append(np.asarray(part, dtype))
        single = arrays[0].ndim == next(iter(INPUTS.values()))[1]
        arrays = [x[None] for x in arrays] if single else arrays
        batch = len(arrays[0])
        if self._memory is None:
            self._memory = [np.repeat(x, batch, 0) for x in self._initial]
        action, *self._memory = _act(self._constants, batch, *arrays, *self._memory)
        return action[0] if single else action


def _conv(x, w, strides, padding):
    """Cross-correlation of x [N, C, H, W] with w [O, C, h, w]."""
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    return np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def _act(c, batch, {arguments}):
{body}
'''


def to_numpy(graph: Graph, about: str = "A policy") -> tuple[str, dict[str, np.ndarray]]:
    """The source of a module with a class `Policy`, and the arrays that it reads from its `.npz` file."""
    constants: list[np.ndarray] = []
    arguments = {id(x): f"in{i}" for i, x in enumerate(graph.inputs)}

    def source(x: Operand) -> str:
        if isinstance(x, Value):
            return arguments.get(id(x), x.name)
        if x.ndim == 0 and np.isfinite(x):
            return f"np.{x.dtype.name.replace('bool', 'bool_')}({x.item()!r})"
        constants.append(x)
        return f"c[{len(constants) - 1}]"

    lines = [f"    {node.output.name} = {_expression(node, [source(x) for x in node.inputs])}" for node in graph.nodes]
    lines.append(f"    return {', '.join(source(x) for x in graph.outputs)},")
    text = MODULE.format(
        about=about,
        inputs=repr({x.name: (x.dtype.name, len(x.shape) - 1) for x in graph.observation}),
        constants=len(constants),
        arguments=", ".join(arguments.values()),
        body="\n".join(lines),
    )
    return text, {str(i): x for i, x in enumerate([*constants, *graph.memory])}


def _expression(node: Node, x: list[str]) -> str:
    if node.op in ELEMENTWISE:
        return ELEMENTWISE[node.op].format(*x)
    return STRUCTURAL[node.op](node, *x)


def _shape(shape: Shape) -> str:
    return f"({' '.join(f'{size},' for size in shape)})"


def _slice(node: Node, x: str) -> str:
    ranges = zip(*(node.params[name] for name in ("starts", "ends", "steps")))
    return f"{x}[{', '.join(f'{i}:{j}:{k}' if j < WHOLE else f'{i}::{k}' for i, j, k in ranges)}]"


def _reduction(function: str) -> Callable[..., str]:
    return lambda node, x: f"np.{function}({x}, axis={tuple(node.params['axes'])})"


def _dot(node: Node, x: str, y: str) -> str:
    (left, right), (batch, _) = node.params["dimension_numbers"]
    if batch:
        return f'np.einsum("{einsum(node)}", {x}, {y})'
    return f"np.tensordot({x}, {y}, axes=({tuple(left)}, {tuple(right)}))"


def einsum(node: Node) -> str:
    """`dot_general` in Einstein's notation."""
    (left, right), (left_batch, right_batch) = node.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    x, y = ([next(letters) for _ in operand.shape] for operand in node.inputs)
    for i, j in zip((*left, *left_batch), (*right, *right_batch)):
        y[j] = x[i]
    free = [c for i, c in enumerate(x) if i not in (*left, *left_batch)]
    free += [c for i, c in enumerate(y) if i not in (*right, *right_batch)]
    return f"{''.join(x)},{''.join(y)}->{''.join([x[i] for i in left_batch] + free)}"


ELEMENTWISE = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "{0} ** {1}",
    "max": "np.maximum({0}, {1})",
    "min": "np.minimum({0}, {1})",
    "neg": "-{0}",
    "abs": "np.abs({0})",
    "exp": "np.exp({0})",
    "log": "np.log({0})",
    "sqrt": "np.sqrt({0})",
    "tanh": "np.tanh({0})",
    "logistic": "np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * {0})",  # never overflows
    "eq": "{0} == {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "not": "~{0}",
    "where": "np.where({0}, {1}, {2})",
}

STRUCTURAL: dict[str, Callable[..., str]] = {
    "convert_element_type": lambda node, x: f'np.asarray({x}).astype("{node.output.dtype}")',
    "reshape": lambda node, x: f"np.reshape({x}, {_shape(node.params['shape'])})",
    "broadcast": lambda node, x: f"np.broadcast_to({x}, {_shape(node.params['shape'])})",
    "transpose": lambda node, x: f"np.transpose({x}, {tuple(node.params['permutation'])})",
    "concatenate": lambda node, *x: f"np.concatenate([{', '.join(x)}], axis={node.params['dimension']})",
    "slice": _slice,
    "reduce_sum": _reduction("sum"),
    "reduce_max": _reduction("max"),
    "reduce_min": _reduction("min"),
    "argmax": lambda node, x: f'np.argmax({x}, axis={node.params["axes"][0]}).astype("{node.output.dtype}")',
    "dot_general": _dot,
    "conv": lambda node, x, w: f"_conv({x}, {w}, {node.params['strides']}, {node.params['padding']})",
}
