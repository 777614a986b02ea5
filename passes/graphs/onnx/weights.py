"""Operators of ONNX graphs that have constant weights and are no layers: `Graph.weighted`."""

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, Weighted
from nmcompile.passes.graphs.onnx.nodes import int_attribute, layer_name, module_scope
from nmcompile.passes.graphs.onnx.planar import read_planar
from nmcompile.passes.graphs.planar import layers_of
from nmcompile.passes.graphs.transposed import outputs_first

ConstantOf = Callable[[ir.Value], Array | None]
ShapeOf = Callable[[ir.Value], tuple[int, ...] | None]

# Where the weight and its zero point stand among the inputs, None where there is no zero point.
_INPUTS: dict[str, tuple[int, int | None]] = {
    "Conv": (1, None),
    "ConvTranspose": (1, None),
    "Gemm": (1, None),
    "MatMul": (1, None),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "DeformConv": (1, None),
    "RNN": (1, None),
}


def weighted_node(
    node: ir.Node, named: str | None, constant: ConstantOf, shape: ShapeOf
) -> Weighted | None:
    """What a node that is no layer says about its weight; None where it has no constant one.

    Args:
        node: of the graph.
        named: the name of a node whose weight depends on constants only, if it has one.
        constant: the contents of a value.
        shape: that of a value.
    """
    places = _INPUTS.get(node.op_type) if node.domain == "" else None
    if places is None or len(node.inputs) <= places[0] or node.inputs[places[0]] is None:
        return None
    source = cast(ir.Value, node.inputs[places[0]])
    weight = constant(source)
    if weight is None and named is None:
        return None
    name = named or _name(node, source)
    if weight is None:
        producer = source.producer()
        by = producer.op_type if producer is not None else "something unknown"
        reason = f"its weight is computed by {by}, which could not be evaluated"
        return Weighted(name, node.op_type, None, reason)
    if node.op_type == "RNN":
        return Weighted(name, node.op_type, None, "the weights of this kind of layer are not read")
    groups = int_attribute(node, "group", 1)
    read, reason = _read(node, weight, places[1], constant, groups)
    if read is None:
        return Weighted(name, _kind(node, weight), None, reason)
    out = shape(node.outputs[0])
    macs = None if out is None else int(np.prod(out, dtype=np.int64)) * int(np.prod(read.shape[1:]))
    form = read_planar(node, constant, shape)
    pieces = () if form is None else layers_of(form, name)
    if pieces:
        macs = sum(piece.macs or 0 for piece in pieces)
    handle = node if pieces and source.is_initializer() else None
    return Weighted(name, _kind(node, weight), read, "", groups, macs, pieces, handle)


def _read(
    node: ir.Node, weight: Array, zero: int | None, constant: ConstantOf, groups: int
) -> tuple[Array | None, str]:
    """The weight as (O, I, ...) with true zeros, or why not."""
    if zero is not None and len(node.inputs) > zero and node.inputs[zero] is not None:
        point = constant(cast(ir.Value, node.inputs[zero]))
        if point is None:
            return None, "the zero point of its weight is computed at run time"
        # One for all, or one for each output channel: the first axis of convolutions.
        conv = node.op_type in ("ConvInteger", "QLinearConv")
        lined = point.reshape(-1, *[1] * (weight.ndim - 1)) if conv else point
        weight = weight.astype(np.int64) - lined.astype(np.int64)
    if "Conv" in node.op_type:
        if not 3 <= weight.ndim <= 5:
            return None, f"a weight of {weight.ndim} dimensions is none of a convolution"
        return outputs_first(weight, groups) if node.op_type == "ConvTranspose" else weight, ""
    if weight.ndim != 2:
        return None, f"its weight has {weight.ndim} dimensions; a pattern is one of matrices"
    return weight if int_attribute(node, "transB", 0) else weight.T, ""


def _kind(node: ir.Node, weight: Array) -> str:
    if node.op_type == "ConvTranspose":
        return f"conv_transpose{weight.ndim - 2}d"
    return f"conv{weight.ndim - 2}d" if node.op_type == "Conv" else node.op_type


def _name(node: ir.Node, source: ir.Value) -> str:
    if source is node.inputs[1]:
        return layer_name(node)
    return module_scope(node) or str(node.name or node.outputs[0].name)
