"""A policy's graph as an ONNX model."""

from typing import Any

import numpy as np

from offroad.errors import OffroadError
from offroad.export.graph import Graph, Node, Operand, Shape, Value
from offroad.export.to_numpy import einsum

BATCH = "/batch"  # the length of the first axis
OPSET, IR = 18, 9  # of 2023: what runtimes on devices know

ELEMENTWISE = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "max": "Max", "min": "Min"}
ELEMENTWISE |= {"neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh"}
ELEMENTWISE |= {"logistic": "Sigmoid", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater"}
ELEMENTWISE |= {"ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not", "where": "Where"}
REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def to_onnx(graph: Graph, about: str = "A policy") -> Any:
    """An `onnx.ModelProto`.

    Its inputs are `observation`, or the parts of a Dict by name, and `memory` if the policy has one, which is zero at
    the start of an episode; its outputs are `action` and `next_memory`. The first axis of all is a batch of any size.
    """
    try:
        from onnx import helper
    except ImportError:
        raise OffroadError("ONNX models need the package onnx: pip install 'offroad[export]'") from None
    model = _Model({id(x): x.name for x in graph.inputs})
    model.node("Shape", [graph.inputs[0].name], BATCH, start=0, end=1)
    for node in graph.nodes:
        model.emit(node)
    ends = ["action", *(f"next_{x.name}" for x in graph.inputs[len(graph.observation) :])]
    for end, x in zip(ends, graph.outputs):
        model.node("Identity", [model.operand(x)], end)
    described = [helper.make_tensor_value_info(x.name, _type(x), _axes(x.shape)) for x in graph.inputs]
    results = [helper.make_tensor_value_info(n, _type(x), _axes(x.shape)) for n, x in zip(ends, graph.outputs)]
    body = helper.make_graph(model.nodes, "policy", described, results, model.constants, about)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="offroad", doc_string=about
    )


class _Model:
    """Nodes and constants under construction."""

    def __init__(self, inputs: dict[int, str]):
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def operand(self, x: Operand) -> str:
        from onnx import numpy_helper

        if isinstance(x, Value):
            return self.inputs.get(id(x), f"/{x.name}")  # the slash keeps clear of the parts of observations
        name = f"/c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(x).reshape(x.shape), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def integers(self, *values: int) -> str:
        return self.operand(np.array(values, np.int64))

    def emit(self, node: Node) -> None:
        x, out, params = [self.operand(x) for x in node.inputs], self.operand(node.output), node.params
        match node.op:
            case op if op in ELEMENTWISE:
                self.node(ELEMENTWISE[op], x, out)
            case op if op in REDUCTIONS:
                self.node(REDUCTIONS[op], [x[0], self.integers(*params["axes"])], out, keepdims=0)
            case "convert_element_type":
                self.node("Cast", x, out, to=_type(node.output))
            case "reshape":
                self.node("Reshape", [x[0], self.integers(*(_fixed(n, -1) for n in params["shape"]))], out)
            case "broadcast":
                sizes = [BATCH if not isinstance(n, int) else self.integers(n) for n in params["shape"]]
                if any(str(n) != "batch" for n in params["shape"] if not isinstance(n, int)):
                    raise OffroadError(f"the policy broadcasts to {params['shape']}, which cannot be exported to ONNX")
                self.node("Expand", [x[0], self.node("Concat", sizes, f"{out}_shape", axis=0)], out)
            case "transpose":
                self.node("Transpose", x, out, perm=list(params["permutation"]))
            case "concatenate":
                self.node("Concat", x, out, axis=params["dimension"])
            case "slice":
                starts, ends, steps = (self.integers(*params[name]) for name in ("starts", "ends", "steps"))
                axes = self.integers(*range(len(params["starts"])))
                self.node("Slice", [x[0], starts, ends, axes, steps], out)
            case "argmax":
                index = self.node("ArgMax", x, f"{out}_index", axis=params["axes"][0], keepdims=0)
                self.node("Cast", [index], out, to=_type(node.output))
            case "dot_general":
                plain = ((len(node.inputs[0].shape) - 1,), (0,)), ((), ())
                numbers = tuple(tuple(map(tuple, part)) for part in params["dimension_numbers"])
                if numbers == plain and len(node.inputs[1].shape) == 2:
                    self.node("MatMul", x, out)
                else:
                    self.node("Einsum", x, out, equation=einsum(node))
            case "conv":
                pads = [p[0] for p in params["padding"]] + [p[1] for p in params["padding"]]
                self.node("Conv", x, out, strides=params["strides"], pads=pads)


def _type(x: Operand) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(x.dtype)


def _fixed(size: Any, otherwise: int) -> int:
    return size if isinstance(size, int) else otherwise


def _axes(shape: Shape) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in shape]
