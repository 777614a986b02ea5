"""ConvInteger and MatMulInteger, whose outputs are exact sums, and DynamicQuantizeLinear."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from nmcompile.passes.operators.onnx.integers.linear import GEOMETRY
from nmcompile.passes.operators.onnx.integers.rewriting import PER_SLICE, IntegerRewriting
from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.onnx.rewriting import Reason

EXACT = 1 << 24
"""Sums of integers up to here are exact in float32."""

RANGE = 255
"""The furthest that an integer of 8 bits can be from its zero point."""


def rewrite_conv_integer(new: IntegerRewriting) -> None:
    """ConvInteger(x, w, x's zero point, w's zero point)."""
    kept = {name: attribute(new.node, name) for name in GEOMETRY if name in new.node.attributes}
    x = _counted(new, 0, 2, 0)
    _finish(new, new.layer("Conv", x, _counted(new, 1, 3, 0), **kept))


def rewrite_matmul_integer(new: IntegerRewriting) -> None:
    """MatMulInteger(a, b, a's zero point, b's zero point); per row of a, per column of b."""
    a = _counted(new, 0, 2, new.rank(new.operand(0, "A")) - 2)
    b = _counted(new, 1, 3, new.rank(new.operand(1, "B")) - 1)
    _finish(new, new.layer("MatMul", a, b))


def rewrite_dynamic(new: IntegerRewriting) -> None:
    """DynamicQuantizeLinear as ONNX defines it, and as onnxruntime does for a tensor of zeros."""
    x = new.operand(0, "x")
    zero, one, most = (new.constant(np.array(value, np.float32)) for value in (0, 1, RANGE))
    high = new.add("Max", new.add("ReduceMax", x, keepdims=0), zero)
    low = new.add("Min", new.add("ReduceMin", x, keepdims=0), zero)
    extent = new.add("Sub", high, low)
    flat = new.add("Equal", extent, zero)
    flat.type = ir.TensorType(ir.DataType.BOOL)
    scale = new.add("Where", flat, one, new.add("Div", extent, most))
    scale.type = x.type
    raised = new.add(
        "Round", new.add("Clip", new.add("Neg", new.add("Div", low, scale)), zero, most)
    )
    point = new.add("Cast", raised, to=int(ir.DataType.UINT8))
    whole = new.add("QuantizeLinear", x, scale, point)
    point.type = whole.type = ir.TensorType(ir.DataType.UINT8)
    for old, value in zip(new.node.outputs[1:], (scale, point), strict=False):
        value.shape = ir.Shape(())
        new.graph.replace(old, value)
    new.finish(whole)


def _counted(new: IntegerRewriting, at: int, zero: int, axis: int) -> ir.Value:
    """An input less its zero point, as real numbers; the zero point may be computed."""
    value, point = new.operand(at, "AB"[at]), operand(new.node, zero)
    shape = () if point is None else new.graph.shape(point)
    if shape is None or len(shape) > 1:
        raise Reason("its zero points are neither single numbers nor one for each slice")
    per_slice = shape not in ((), (1,))
    if per_slice:
        new.expect_opset(PER_SLICE, "it has several zero points")
    scale = new.constant(np.ones(shape if per_slice else (), np.float32))
    inputs = (value, scale) if point is None else (value, scale, point)
    real = new.add("DequantizeLinear", *inputs, **({"axis": axis} if per_slice else {}))
    real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    return real


def _finish(new: IntegerRewriting, real: ir.Value) -> None:
    """Give readers the sums: as real numbers where they want these, else as integers.

    Whoever makes float32 of the sums, as dynamically quantised models do, gets them as float32
    convolutions compute them. Integers have to be exact.
    """
    old = new.node.outputs[0]
    readers = [user for user, _ in old.uses()]
    casts = [user for user in readers if _makes_float(user)]
    if len(casts) < len(readers) or old.is_graph_output():
        if _largest(new) > EXACT:
            raise Reason(
                "its sums may exceed 2**24, up to where float32 counts exactly, and not all of "
                "what reads them converts them to float32"
            )
        whole = new.add("Cast", real, to=int(ir.DataType.INT32))
        whole.type = ir.TensorType(ir.DataType.INT32)
        new.finish(whole)
        return
    for cast in casts:
        cast_output = cast.outputs[0]
        real.shape = cast_output.shape
        new.graph.replace(cast_output, real)
    new.graph.sweep()


def _largest(new: IntegerRewriting) -> int:
    """What no sum can exceed, whatever the input; more than `EXACT` where that is not known."""
    source, value = new.operand(1, "B"), operand(new.node, 3)
    weight, shape = new.graph.constant(source), new.graph.shape(source)
    point = np.zeros((), np.int8) if value is None else new.graph.constant(value)
    conv = new.node.op_type == "ConvInteger"
    if shape is None:
        return EXACT + 1
    if weight is None or point is None:
        terms = math.prod(shape[1:]) if conv else shape[-min(len(shape), 2)]
        return terms * RANGE * RANGE
    if conv and point.ndim:
        point = point.reshape(-1, *[1] * (weight.ndim - 1))
    distance = np.abs(weight.astype(np.int64) - point.astype(np.int64))
    sums = distance.reshape(len(weight), -1).sum(1) if conv else distance.sum(-min(weight.ndim, 2))
    return int(sums.max()) * RANGE


def _makes_float(node: ir.Node) -> bool:
    return (
        node.op_type == "Cast"
        and node.domain == ""
        and attribute(node, "to") == int(ir.DataType.FLOAT)
    )
