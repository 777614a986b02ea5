"""What ONNX operators do to channels: `Op.flow`, `uniform` and `parameters` of ONNX graphs.

An operator that is not listed here is opaque: nothing is claimed about it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, ChannelFlow, OpKind, Parameter, Uniform
from nmcompile.passes.graphs.onnx.nodes import int_attribute, ints_attribute

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
_ELEMENTWISE = {"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"}
_QUANTISED = {"DequantizeLinear", "QuantizeLinear"}
_RESHAPE = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}

ShapeOf = Callable[[Any], tuple[int, ...] | None]
ConstantOf = Callable[[Any], Array | None]


def channel_flow(node: ir.Node, kind: OpKind, shape: ShapeOf, constant: ConstantOf) -> ChannelFlow:
    """`Op.flow` of a node; `shape` and `constant` are the graph's."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "opaque"
    if kind in ("batch_norm", "identity"):
        return "channelwise"
    operator = node.op_type if node.domain == "" else ""
    if operator in _POINTWISE or operator in _POOL:
        return "channelwise"
    if operator in _ELEMENTWISE:
        return "elementwise"
    if operator in _RESHAPE:
        return "reshape"
    if operator in _QUANTISED:
        steps = [constant(value) for value in node.inputs[1:] if value is not None]
        single = all(array is not None and array.size == 1 for array in steps)
        return "channelwise" if single else "opaque"
    known = shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    rank = len(known or ())
    if operator == "Concat":
        axis = int_attribute(node, "axis", 0)
        return "concat" if rank and axis % rank == 1 else "opaque"
    if operator in _REDUCE and rank:
        axes = _numbers(node, 1, constant, ints_attribute(node, "axes", ()))
        alike = axes and {0, 1}.isdisjoint(int(axis) % rank for axis in axes)
        return "channelwise" if alike else "opaque"
    if operator == "Pad" and rank and len(node.inputs) < 4:
        pads = _numbers(node, 1, constant, ())
        outer = [*pads[:2], *pads[rank : rank + 2]]
        return "channelwise" if len(pads) == 2 * rank and not any(outer) else "opaque"
    if operator == "Resize" and known is not None and "axes" not in node.attributes:
        mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        scales, sizes = (_numbers(node, index, constant, ()) for index in (2, 3))
        kept = scales[:2] == [1, 1] if scales else sizes[:2] == list(known[:2])
        return "channelwise" if kept and mode != "tf_crop_and_resize" else "opaque"
    return "opaque"


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
