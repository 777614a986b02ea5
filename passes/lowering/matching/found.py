"""What the matchers of transformers find."""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.spec import Attention, LayerNorm, Product, Softmax
from nmcompile.passes.lowering.view import Expr


@dataclass(frozen=True)
class Found:
    """One operator, the tensors that its kernel reads, and the variables that it replaces.

    The result is the last of `members`.
    """

    spec: Attention | Product | LayerNorm | Softmax
    operands: tuple[Expr, ...]
    members: tuple[Expr, ...]
