"""QLinearConv, QLinearMatMul and onnxruntime's QGemm.

Their sums are exact integers, which the factor x_scale * w_scale / y_scale makes numbers of. Those
of the rewritten form are rounded as float32: what is quantised then differs by one step at most.
"""

from __future__ import annotations

import numpy as np

from nmcompile.passes.operators.onnx.integers.rewriting import IntegerRewriting, Steps
from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.onnx.rewriting import Reason

GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""Attributes of a convolution."""


def rewrite_conv(new: IntegerRewriting) -> None:
    """QLinearConv(x, its steps, w, its steps, y's steps, bias)."""
    x_steps = new.single_steps(1, 2, "input")
    w_steps, y_steps = new.steps(4, 5, "weight"), new.single_steps(6, 7, "output")
    inputs = [
        new.dequantise(new.operand(0, "x"), x_steps),
        new.dequantise(new.operand(3, "w"), w_steps, axis=0),
    ]
    if operand(new.node, 8) is not None:
        scale = x_steps.scale * w_steps.scale
        steps = Steps(scale, np.zeros(scale.shape, np.int32))
        inputs.append(new.dequantise(new.operand(8, "B"), steps))
    kept = {name: attribute(new.node, name) for name in GEOMETRY if name in new.node.attributes}
    new.finish(new.quantise(new.layer("Conv", *inputs, **kept), y_steps))


def rewrite_matmul(new: IntegerRewriting) -> None:
    """QLinearMatMul(a, its steps, b, its steps, y's steps); per row of a, per column of b."""
    a, b = new.operand(0, "a"), new.operand(3, "b")
    a_steps, b_steps = new.steps(1, 2, "a"), new.steps(4, 5, "b")
    y_steps = new.single_steps(6, 7, "output")
    for name, steps in (("a", a_steps), ("b", b_steps)):
        if not steps.single and max(steps.scale.ndim, steps.zero.ndim) > 1:
            raise Reason(f"its {name} has scales of {steps.scale.ndim} dimensions")
    left = new.dequantise(a, a_steps, axis=new.rank(a) - 2)
    right = new.dequantise(b, b_steps, axis=new.rank(b) - 1)
    new.finish(new.quantise(new.layer("MatMul", left, right), y_steps))


def rewrite_gemm(new: IntegerRewriting) -> None:
    """QGemm(a, its steps, b, its steps, c, y's steps); without the last the output is real.

    The scale of c is alpha * a's * b's, its zero point 0.
    """
    a_steps, b_steps = new.single_steps(1, 2, "A"), new.steps(4, 5, "B")
    alpha = np.float32(new.number("alpha", 1.0))
    turned = int(new.number("transB", 0))
    inputs = [
        new.dequantise(new.operand(0, "A"), a_steps),
        new.dequantise(new.operand(3, "B"), b_steps, axis=0 if turned else 1),
    ]
    if operand(new.node, 6) is not None:
        c = new.operand(6, "C")
        scale = np.asarray(alpha * a_steps.scale * b_steps.scale, np.float32)
        steps = Steps(scale, np.zeros(scale.shape, np.int32))
        inputs.append(new.dequantise(c, steps, axis=max(new.rank(c) - 1, 0)))
    kept = {
        "alpha": float(alpha), "transA": int(new.number("transA", 0)), "transB": turned,
    }  # fmt: skip
    real = new.layer("Gemm", *inputs, **kept)
    if operand(new.node, 7) is None:
        new.finish(real)
        return
    new.finish(new.quantise(real, new.single_steps(7, 8, "output", new.dtype(0, "A"))))
