"""What becomes of the vectors that a kernel has computed: how they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nmcompile.kernels.avx512.emit import Buffer, Expr, store
from nmcompile.kernels.prim_func import PrimFuncBuilder

Store = Callable[[Buffer, Expr, Expr, int], None]
"""`store(out, start, value, active)`: the first `active` lanes of a float32x16."""


class Writing(Protocol):
    """One way; equal where the functions are."""

    def __hash__(self) -> int:
        """Equal for equal ones."""

    @property
    def dtype(self) -> str:
        """Of the output."""

    def declare(self, func: PrimFuncBuilder) -> Store:
        """Declare what it needs, the arguments behind those that the kernel reads."""


@dataclass(frozen=True)
class Reals:
    """float32, as they are."""

    dtype: str = "float32"

    def declare(self, func: PrimFuncBuilder) -> Store:
        """See `Writing`."""
        return store


REALS = Reals()
