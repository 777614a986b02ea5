"""Kernels of real numbers whose results are rounded to u8 before they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.attention.kernel import emit_attention
from nmcompile.kernels.avx512.attention.plan import Plan
from nmcompile.kernels.avx512.emit import Buffer, Expr, splat
from nmcompile.kernels.avx512.rowwise.layer_norm import emit_layer_norm
from nmcompile.kernels.avx512.writing import Store
from nmcompile.kernels.avx512_vnni.emit import round_to_steps, store_bytes
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Attention, LayerNorm


@dataclass(frozen=True)
class Rounded:
    """u8: rint(value / step) + zero, from `low` to `high`; `step` is an argument of one float."""

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
        step = func.tensor("step", (1,))

        def write(out: Buffer, start: Expr, value: Expr, active: int) -> None:
            whole = round_to_steps(value, splat(step[0]), self.zero, self.low, self.high)
            store_bytes(out, start, T.Cast("int8x16", whole), active)

        return write


def lower_layer_norm(name: str, problem: Problem, config: None) -> Lowered:
    """Layer norm over the last axes."""
    spec, integers = problem.spec, problem.integers
    assert isinstance(spec, LayerNorm) and integers is not None
    return Lowered(emit_layer_norm, (name, spec, Rounded.of(problem)), {"step": integers.scale})


def refuse_attention(problem: Problem) -> str | None:
    """Results whose features do not lie beside each other."""
    spec = problem.spec
    assert isinstance(spec, Attention)
    if spec.out.feature == 1:
        return None
    return (
        f"features of the result lie {spec.out.feature} values apart; expected one beside another"
    )


def lower_attention(name: str, problem: Problem, config: None) -> Lowered:
    """Both products and the softmax between them."""
    spec, integers = problem.spec, problem.integers
    assert isinstance(spec, Attention) and integers is not None
    size = spec.heads * Plan(spec).packed
    arguments = (name, spec, Rounded.of(problem))
    return Lowered(emit_attention, arguments, {"step": integers.scale}, scratch=(size,))
