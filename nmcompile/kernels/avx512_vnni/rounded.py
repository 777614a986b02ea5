"""Kernels of real numbers whose results are rounded to u8 before they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.attention.kernel import emit_attention
from nmcompile.kernels.avx512.attention.plan import Plan
from nmcompile.kernels.avx512.emit import Buffer, Expr, splat
from nmcompile.kernels.avx512.rowwise.layer_norm import emit_layer_norm
from nmcompile.kernels.avx512.writing import Store
from nmcompile.kernels.avx512_vnni.emit import round_steps, store_bytes
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Attention, LayerNorm


@dataclass(frozen=True)
class Rounded:
    """u8: rint(value * steps) + zero, from `low` to `high`; `steps` is an argument of one float.

    They are how many one is, 1 / scale: the quotient, which is what QuantizeLinear computes, would
    take more time than a norm, and differs where a value is within 2e-7 of halfway between two.
    """

    zero: int
    low: int
    high: int
    dtype: str = "uint8"

    @classmethod
    def of(cls, problem: Problem) -> Rounded:
        """As a problem of int8 says."""
        integers = problem.integers
        assert integers is not None
        return cls(integers.zero, integers.low, integers.high)

    def declare(self, func: PrimFuncBuilder) -> Store:
        """See `Writing`."""
        steps = func.tensor("steps", (1,))

        def write(out: Buffer, start: Expr, value: Expr, active: int) -> None:
            counted = T.bind(value * splat(steps[0]))
            whole = round_steps(counted, self.zero, self.low, self.high)
            store_bytes(out, start, T.Cast("int8x16", whole), active)

        return write


def refuse_layer_norm(problem: Problem) -> str | None:
    """Steps so small that no float counts them."""
    if np.isfinite(_steps(problem)).all():
        return None
    return "its output has steps so small that one is more of them than float32 holds"


def lower_layer_norm(name: str, problem: Problem, config: None) -> Lowered:
    """Layer norm over the last axes."""
    spec = problem.spec
    assert isinstance(spec, LayerNorm)
    arrays = {"steps": _steps(problem)}
    return Lowered(emit_layer_norm, (name, spec, Rounded.of(problem)), arrays)


def refuse_attention(problem: Problem) -> str | None:
    """As of norms, and results whose features do not lie beside each other."""
    spec = problem.spec
    assert isinstance(spec, Attention)
    if spec.out.feature == 1:
        return refuse_layer_norm(problem)
    return (
        f"features of the result lie {spec.out.feature} values apart; expected one beside another"
    )


def lower_attention(name: str, problem: Problem, config: None) -> Lowered:
    """Both products and the softmax between them."""
    spec = problem.spec
    assert isinstance(spec, Attention)
    size = spec.heads * Plan(spec).packed
    arguments = (name, spec, Rounded.of(problem))
    return Lowered(emit_attention, arguments, {"steps": _steps(problem)}, scratch=(size,))


def _steps(problem: Problem) -> npt.NDArray[np.float32]:
    assert problem.integers is not None
    with np.errstate(over="ignore"):
        return np.float32(1) / problem.integers.scale
