"""onnxruntime's operators over integers that compute with what these stand for, and quantise it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from nmcompile.passes.operators.onnx.integers.rewriting import LATER, LATER_OPSET, IntegerRewriting
from nmcompile.passes.operators.onnx.limits import attribute
from nmcompile.passes.operators.onnx.rewriting import Reason

POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
"""Attributes of an average pool."""


def of_two(operator: str) -> Callable[[IntegerRewriting], None]:
    """QLinearAdd, QLinearMul(a, its steps, b, its steps, y's steps)."""

    def rewrite(new: IntegerRewriting) -> None:
        dtype = new.dtype(0, "A")
        steps = new.single_steps(6, 7, "output", dtype)
        sides = [
            new.dequantise(new.operand(at, name), new.single_steps(at + 1, at + 2, name, dtype))
            for at, name in ((0, "A"), (3, "B"))
        ]
        new.finish(new.quantise(new.add(operator, *sides), steps))

    return rewrite


def of_one(operator: str, *attributes: str) -> Callable[[IntegerRewriting], None]:
    """Operators with inputs (x, its steps, y's steps), and attributes that mean the same."""

    def rewrite(new: IntegerRewriting) -> None:
        if attribute(new.node, "channels_last", 0):
            raise Reason("its channels_last is 1")
        dtype = new.dtype(0, "X")
        steps = new.single_steps(3, 4, "output", dtype)
        real = new.dequantise(new.operand(0, "X"), new.single_steps(1, 2, "input", dtype))
        given = {name: attribute(new.node, name) for name in attributes}
        kept = {name: value for name, value in given.items() if value is not None}
        new.finish(new.quantise(new.add(operator, real, **kept), steps))

    return rewrite


def rewrite_concat(new: IntegerRewriting) -> None:
    """QLinearConcat(y's steps, then each part and its steps)."""
    steps = new.single_steps(0, 1, "output")
    parts: list[ir.Value] = []
    for at in range(2, len(new.node.inputs), 3):
        name = f"part {len(parts)}"
        parts.append(new.dequantise(new.operand(at, name), new.single_steps(at + 1, at + 2, name)))
    axis = int(new.number("axis"))
    if not parts:
        raise Reason("it has nothing to join")
    new.finish(new.quantise(new.add("Concat", *parts, axis=axis), steps))


def rewrite_standard(new: IntegerRewriting) -> None:
    """Onnxruntime's own QuantizeLinear and DequantizeLinear: as ONNX's, of 4 and 16 bits too."""
    inputs = [value for value in new.node.inputs if value is not None]
    if any(value.dtype in LATER for value in inputs):
        new.expect_opset(LATER_OPSET, "it is of 4 or 16 bits")
    given = {"axis": int(new.number("axis"))} if "axis" in new.node.attributes else {}
    value = new.add(new.node.op_type, *inputs, **given)
    if new.node.op_type == "DequantizeLinear":
        value.type = ir.TensorType(ir.DataType.FLOAT)
    else:
        dtype = inputs[2].dtype if len(inputs) > 2 else ir.DataType.UINT8
        value.type = None if dtype is None else ir.TensorType(dtype)
    new.finish(value)
