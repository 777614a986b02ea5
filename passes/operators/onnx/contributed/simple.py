"""Norms with what goes before them, and forms of GELU."""

from __future__ import annotations

import math

import onnx_ir as ir

from nmcompile.passes.operators.onnx.contributed.writing import Writing

TANGENT = math.sqrt(2 / math.pi)


def rewrite_gelu(new: Writing) -> None:
    """Gelu and BiasGelu: exact, of a sum where there are two inputs."""
    new.finish_all(new.gelu(_sum(new, new.given(0, "input"), new.maybe(1, "bias"))))


def rewrite_fast_gelu(new: Writing) -> None:
    """FastGelu: by a tangent, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    x = _sum(new, new.given(0, "input"), new.maybe(1, "bias"))
    cube = new.add("Mul", new.add("Mul", x, x), new.add("Mul", x, new.real(0.044715)))
    tangent = new.add("Tanh", new.add("Mul", new.add("Add", x, cube), new.real(TANGENT)))
    half = new.add("Mul", x, new.real(0.5))
    new.finish_all(new.add("Mul", half, new.add("Add", tangent, new.real(1))))


def rewrite_quick_gelu(new: Writing) -> None:
    """QuickGelu: x sigmoid(alpha x)."""
    x, alpha = new.given(0, "input"), new.number("alpha", 1.702)
    gate = new.add("Sigmoid", new.add("Mul", x, new.real(alpha)))
    new.finish_all(new.add("Mul", x, gate))


def rewrite_skip_norm(new: Writing) -> None:
    """SkipLayerNormalization: of input + skip + bias, which is the last output."""
    new.refuse_outputs(mean=1, inv_std_var=2)
    total = _sum(new, new.given(0, "input"), new.given(1, "skip"), new.maybe(4, "bias"))
    _scaled(new, total, new.given(2, "gamma"), new.maybe(3, "beta"), centred=True, sum_at=3)


def rewrite_skip_rms_norm(new: Writing) -> None:
    """SkipSimplifiedLayerNormalization: the same without a mean."""
    new.refuse_outputs(mean=1, inv_std_var=2)
    total = _sum(new, new.given(0, "input"), new.given(1, "skip"), new.maybe(3, "bias"))
    _scaled(new, total, new.given(2, "gamma"), None, centred=False, sum_at=3)


def rewrite_rms_norm(new: Writing) -> None:
    """SimplifiedLayerNormalization: RMS norm over the last axis."""
    new.refuse_outputs(inv_std_var=1)
    new.expect("axis", -1, new.rank(new.operand(0, "X")) - 1)
    new.expect("stash_type", 1)
    _scaled(new, new.given(0, "X"), new.given(1, "scale"), None, centred=False, epsilon=1e-5)


def _sum(new: Writing, x: ir.Value, *others: ir.Value | None) -> ir.Value:
    for other in others:
        x = x if other is None else new.add("Add", x, other)
    return x


def _scaled(
    new: Writing, x: ir.Value, scale: ir.Value, shift: ir.Value | None, *, centred: bool,
    sum_at: int = 0, epsilon: float = 1e-12,
) -> None:  # fmt: skip
    row = new.normalised(x, centred=centred, epsilon=new.number("epsilon", epsilon))
    made = _sum(new, new.add("Mul", row, scale), shift)
    new.finish_all(made, *([None] * (sum_at - 1)), *([x] if sum_at else []))
