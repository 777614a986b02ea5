"""Operators of ONNX that select or move elements, over integers that a quantisation has made."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

from nmcompile.passes.operators.onnx.integers.rewriting import IntegerRewriting, Steps
from nmcompile.passes.operators.onnx.limits import operand
from nmcompile.passes.operators.onnx.rewriting import Reason


def rewrite_moved(new: IntegerRewriting) -> None:
    """op(q) = quantise(op(dequantise(q))), exactly: what both do to one integer cancels out.

    The order of real numbers is that of the integers, so that maxima are the same.
    """
    value = new.operand(0, "data")
    steps = _origin(new, value)
    if len(new.node.outputs) != 1:
        raise Reason("it has several outputs")
    real = new.dequantise(value, steps)
    others = [operand(new.node, index) for index in range(1, len(new.node.inputs))]
    attributes = {name: found.value for name, found in new.node.attributes.items()}
    new.finish(new.quantise(new.add(new.node.op_type, real, *others, **attributes), steps))


def rewrite_clip(new: IntegerRewriting) -> None:
    """clip(quantise(x)) = quantise(clip(x)), with limits that are a whole number of steps."""
    value = new.operand(0, "input")
    steps = _origin(new, value)
    maker = cast(ir.Node, value.producer())
    if new.graph.uses(value) != 1:
        raise Reason("others read the integers too")
    info = np.iinfo(steps.zero.dtype)
    given = (new.known(1, "min"), new.known(2, "max"))
    if any(limit is not None and limit.size != 1 for limit in given):
        raise Reason("its limits are no single numbers")
    limits = [
        np.asarray(end if limit is None else limit, np.int64).reshape(())
        for limit, end in zip(given, (info.min, info.max), strict=True)
    ]
    ends = [
        new.constant((limit - np.int64(steps.zero)).astype(np.float32) * steps.scale)
        for limit in limits
    ]
    new.finish(new.quantise(new.add("Clip", maker.inputs[0], *ends), steps))


def _origin(new: IntegerRewriting, value: ir.Value) -> Steps:
    """The steps of the quantisation that makes a value."""
    maker = value.producer()
    if maker is None or maker.op_type != "QuantizeLinear" or maker.domain != "":
        raise Reason("its integers do not come from a quantisation")
    scale, point = (operand(maker, index) for index in (1, 2))
    found = [None if entry is None else new.graph.constant(entry) for entry in (scale, point)]
    if found[0] is None or found[1] is None or found[0].dtype != np.float32:
        raise Reason("its integers come from a quantisation whose scale or zero point is computed")
    if found[0].size != 1 or found[1].size != 1:
        raise Reason("its integers come from a quantisation per slice")
    return Steps(found[0].reshape(()), found[1].reshape(()))
