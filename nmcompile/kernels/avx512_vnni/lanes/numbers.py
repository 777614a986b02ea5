"""What lanes multiply, and what becomes of the sums: bytes, or what other rooms say."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

from nmcompile.kernels.avx512_vnni.emit import dot
from nmcompile.kernels.avx512_vnni.lanes.config import padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.finish import Finish, Finisher
from nmcompile.kernels.avx512_vnni.requantise import Requantiser
from nmcompile.kernels.integers import STEPS, IntegerEpilogue
from nmcompile.kernels.prim_func import Buffer, Expr, PrimFuncBuilder


class Numbers(Protocol):
    """One kind of numbers; equal where the functions are."""

    def __hash__(self) -> int:
        """Equal for equal ones."""

    @property
    def size(self) -> int:
        """Bytes of an activation, and of a weight."""

    @property
    def dtype(self) -> str:
        """Of the input."""

    @property
    def sums(self) -> str:
        """The element type of sums."""

    @property
    def zero(self) -> int:
        """The byte that borders are filled with."""

    def dot(self, sums: Expr, x: Expr, weights: Expr) -> Expr:
        """16 sums plus, per lane, the products of four bytes each of two int8x64."""

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """Declare the arguments behind the weights.

        Returns:
            What sums begin with, for each output in whole vectors; and what finishes them.
        """

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """The frame around the statements of the function."""


@dataclass(frozen=True)
class Bytes:
    """u8 activations times s8 weights, as `nmcompile.kernels.integers` says.

    Arguments: offset, scale, steps, [late bias], [residual], out.
    """

    epilogue: IntegerEpilogue
    zero: int
    size: int = 1
    dtype: str = "uint8"
    sums: str = "int32"

    def dot(self, sums: Expr, x: Expr, weights: Expr) -> Expr:
        """See `Numbers`."""
        return dot(sums, x, weights)

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """See `Numbers`."""
        offset = func.tensor("offset", (padded_outputs(outputs),), "int32")
        scale = func.tensor("scale", (padded_outputs(outputs),))
        steps = func.tensor("steps", (len(STEPS),))
        late = self.epilogue.late_bias
        late_bias = func.tensor("late_bias", (padded_outputs(outputs),)) if late else None
        added = "float32" if self.epilogue.real_residual else "uint8"
        residual, out = func.output(out_shape, self.epilogue, self.epilogue.out, added)
        requantiser = Requantiser(self.epilogue, steps)
        return offset, Finish(requantiser, scale, late_bias, residual, out, outputs)

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """See `Numbers`."""
        return contextlib.nullcontext()
