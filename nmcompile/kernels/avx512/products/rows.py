"""What stands behind the row of products: its lowering."""

from __future__ import annotations

from nmcompile.kernels.avx512.products.kernel import emit_product, in_place, packed_floats
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Product


def lower_product(name: str, problem: Problem, config: None) -> Lowered:
    """Two matrices, for each pair of a batch."""
    spec = problem.spec
    assert isinstance(spec, Product)
    size = spec.pairs * packed_floats(spec)
    return Lowered(emit_product, (name, spec), {}, scratch=() if in_place(spec) else (size,))
