"""What ONNX operators do to elements: `Op.flow`, `uniform` and `parameters` of ONNX graphs.

An operator that is not listed here is opaque: nothing is claimed about it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.flow import OPAQUE, Flow, Uniform
from nmcompile.passes.graphs.interface import Array, OpKind, Parameter
from nmcompile.passes.graphs.onnx.nodes import LAYER_NORM, int_attribute, ints_attribute

_POINTWISE = {
    "Abs",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
}
_POOL = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
_REDUCE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
# Of a channel that holds one number these make the same number.
_KEEPING = (_POOL - {"AveragePool"}) | (_REDUCE - {"ReduceSum"}) | {"Resize"}
_ELEMENTWISE = {"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where"}
_QUANTISED = {"DequantizeLinear", "QuantizeLinear"}
_RESHAPE = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_SOFTMAX = {"LogSoftmax", "Softmax"}

SOFTMAX_OF_ONE_AXIS = 13
"""The operator set from which softmax is along one axis, and not along all from it on."""

CROPPING = "tf_crop_and_resize"
"""The mode of Resize that reads elsewhere than its scales say."""

ShapeOf = Callable[[Any], tuple[int, ...] | None]
ConstantOf = Callable[[Any], Array | None]


def channel_flow(
    node: ir.Node, kind: OpKind, shape: ShapeOf, constant: ConstantOf, opset: int
) -> Flow:
    """`Op.flow` of a node; `shape` and `constant` are the graph's, `opset` its operator set."""
    operator = node.op_type if node.domain == "" else ""
    if operator != "Split" and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return OPAQUE
    if kind in ("batch_norm", "identity") or operator in _POINTWISE:
        return Flow("pointwise")
    if operator in _ELEMENTWISE:
        return Flow("elementwise")
    if operator in _RESHAPE:
        return Flow("reshape")
    if operator == "MatMul":
        return Flow("product")
    if operator == "Expand":
        return Flow("broadcast")
    if operator in _QUANTISED:
        steps = [constant(value) for value in node.inputs[1:] if value is not None]
        single = all(array is not None and array.size == 1 for array in steps)
        return Flow("pointwise") if single else OPAQUE
    known = shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if known is None or not known:
        return OPAQUE
    return _of_axes(node, operator, known, constant, opset)


def _of_axes(
    node: ir.Node, operator: str, known: tuple[int, ...], constant: ConstantOf, opset: int
) -> Flow:
    """The flow of an operator that has axes; `known` is the shape of its first input."""
    rank = len(known)
    if operator in _POOL:
        return Flow("along", tuple(range(2, rank)))
    if operator == "Concat":
        return Flow("concat", (int_attribute(node, "axis", 0) % rank,))
    if operator == "Transpose":
        order = ints_attribute(node, "perm", tuple(range(rank))[::-1])
        return Flow("transpose", tuple(order))
    if operator in _SOFTMAX:
        axis = int_attribute(node, "axis", -1 if opset >= SOFTMAX_OF_ONE_AXIS else 1) % rank
        last = axis + 1 if opset >= SOFTMAX_OF_ONE_AXIS else rank
        return Flow("symmetric", tuple(range(axis, last)))
    if operator in LAYER_NORM:
        return Flow("symmetric", tuple(range(int_attribute(node, "axis", -1) % rank, rank)))
    if operator in _REDUCE:
        axes = _numbers(node, 1, constant, ints_attribute(node, "axes", ()))
        if not axes and int_attribute(node, "noop_with_empty_axes", 0):
            return OPAQUE
        computed = len(node.inputs) > 1 and node.inputs[1] is not None and not axes
        return OPAQUE if computed else Flow("reduce", _axes(axes or range(rank), rank))
    if operator == "Pad" and len(node.inputs) < 4:
        pads = _numbers(node, 1, constant, ())
        if len(pads) != 2 * rank:
            return OPAQUE
        return Flow("along", tuple(i for i in range(rank) if pads[i] or pads[rank + i]))
    if operator == "Resize" and "axes" not in node.attributes:
        mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        scales, sizes = (_numbers(node, index, constant, ()) for index in (2, 3))
        kept = scales[:2] == [1, 1] if scales else sizes[:2] == list(known[:2])
        return Flow("along", tuple(range(2, rank))) if kept and mode != CROPPING else OPAQUE
    if operator == "Split":
        return _split(node, known, constant)
    if operator == "Slice":
        return _slice(node, known, constant)
    if operator == "Gather":
        return _gather(node, known, constant)
    return OPAQUE


def _split(node: ir.Node, known: tuple[int, ...], constant: ConstantOf) -> Flow:
    axis = int_attribute(node, "axis", 0) % len(known)
    sizes = [int(size) for size in _numbers(node, 1, constant, ints_attribute(node, "split", ()))]
    if not sizes and (len(node.inputs) < 2 or node.inputs[1] is None):
        size = -(-known[axis] // len(node.outputs))
        sizes = [min(size, known[axis] - size * i) for i in range(len(node.outputs))]
    if sum(sizes) != known[axis] or len(sizes) != len(node.outputs) or min(sizes) < 1:
        return OPAQUE
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    pieces = tuple((end - size, end) for end, size in zip(ends, sizes, strict=True))
    return Flow("slice", (axis,), pieces)


def _slice(node: ir.Node, known: tuple[int, ...], constant: ConstantOf) -> Flow:
    """A slice along one axis; those along several are nothing that is met around channels."""
    starts, ends = (_numbers(node, index, constant, ()) for index in (1, 2))
    axes = _numbers(node, 3, constant, range(len(starts)))
    steps = _numbers(node, 4, constant, (1,) * len(starts))
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1 or steps != [1]:
        return OPAQUE
    (axis,) = _axes(axes, len(known))
    start, stop, _ = slice(int(starts[0]), int(ends[0])).indices(known[axis])
    return Flow("slice", (axis,), ((start, stop),)) if start < stop else OPAQUE


def _gather(node: ir.Node, known: tuple[int, ...], constant: ConstantOf) -> Flow:
    axis = int_attribute(node, "axis", 0) % len(known)
    places = constant(node.inputs[1])
    if places is None:
        table = axis == 0 and len(known) == 2 and constant(node.inputs[0]) is not None
        return Flow("lookup") if table else OPAQUE
    if places.size != 1:
        return OPAQUE
    place = int(places.reshape(-1)[0]) % known[axis]
    return Flow("slice", (axis,), ((place, place + 1),))


def _axes(found: Iterable[float], rank: int) -> tuple[int, ...]:
    return tuple(sorted({int(axis) % rank for axis in found}))


def uniform_channels(node: ir.Node, constant: ConstantOf) -> Uniform:
    """`Op.uniform` of a channelwise node."""
    operator = node.op_type
    if operator in _KEEPING:
        return "kept"
    if operator == "AveragePool":
        pads = any(ints_attribute(node, "pads", ())) or int_attribute(node, "ceil_mode", 0)
        pads = pads or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
        return "zero" if pads and int_attribute(node, "count_include_pad", 0) else "kept"
    if operator == "Pad":
        if node.attributes.get_string("mode", "constant") != "constant":
            return "kept"
        return "unknown" if any(_numbers(node, 2, constant, (0.0,)) or [1.0]) else "zero"
    return "zero" if operator in _REDUCE else "pointwise"


def is_product(node: ir.Node) -> bool:
    """`Op.product` of a node."""
    return node.domain == "" and node.op_type == "Mul"


def channel_parameters(node: ir.Node, kind: OpKind, constant: ConstantOf) -> tuple[Parameter, ...]:
    """`Op.parameters` of a node."""
    if kind == "batch_norm":
        return tuple(Parameter(value, 0) for value in node.inputs[1:5] if value is not None)
    if kind not in ("conv", "linear"):
        return ()
    transposed = kind == "linear" and not int_attribute(node, "transB", 0)
    found = [Parameter(node.inputs[1], *((1, 0) if transposed else (0, 1)))]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        # Gemm adds it by broadcasting: one number may stand for all channels.
        array = constant(bias)
        assert array is not None
        single = array.ndim == 0 or array.shape[-1] == 1
        found.append(Parameter(bias, None if single else array.ndim - 1))
    return tuple(found)


def _numbers(node: ir.Node, index: int, constant: ConstantOf, default: Any) -> list[float]:
    """The contents of an input, the default where there is none; [] where it is computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    array = np.asarray(default) if value is None else constant(value)
    return [] if array is None else [float(number) for number in array.reshape(-1)]
