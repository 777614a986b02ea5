"""What stands behind the row of attention: its lowering."""

from __future__ import annotations

from nmcompile.kernels.avx512.attention.kernel import emit_attention
from nmcompile.kernels.avx512.attention.plan import Plan
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Attention


def lower_attention(name: str, problem: Problem, config: None) -> Lowered:
    """Both products and the softmax between them."""
    spec = problem.spec
    assert isinstance(spec, Attention)
    size = spec.heads * Plan(spec).packed
    return Lowered(emit_attention, (name, spec), {}, scratch=(size,))
