"""What the matchers of operators without weights of their own find."""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.spec import (
    Attention,
    GroupNorm,
    LayerNorm,
    Positions,
    Product,
    Resample,
    Softmax,
)
from nmcompile.passes.lowering.view import Expr


def place_among(operands: list[Expr], operand: Expr) -> int:
    """Which of the tensors that a kernel reads an operand is; the last one, if it is a new one."""
    for place, known in enumerate(operands):
        if operand.same_as(known):
            return place
    operands.append(operand)
    return len(operands) - 1


@dataclass(frozen=True)
class Found:
    """One operator, the tensors that its kernel reads, and the variables that it replaces.

    The result is the last of `members`.
    """

    spec: Attention | Product | LayerNorm | GroupNorm | Softmax | Resample | Positions
    operands: tuple[Expr, ...]
    members: tuple[Expr, ...]
