"""What tiles multiply, and what becomes of the sums: bytes, or bfloat16."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

from nmcompile.kernels.avx512_amx.bfloat16.emit import conversions, declare_output
from nmcompile.kernels.avx512_amx.bfloat16.finish import BrainFinish
from nmcompile.kernels.avx512_amx.instructions import Product
from nmcompile.kernels.avx512_amx.tiles.config import padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.finish import Finish, Finisher
from nmcompile.kernels.avx512_vnni.requantise import Requantiser
from nmcompile.kernels.integers import STEPS, IntegerEpilogue
from nmcompile.kernels.prim_func import Buffer, PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue


class Numbers(Protocol):
    """One kind of numbers; equal where the functions are."""

    def __hash__(self) -> int:
        """Equal for equal ones."""

    @property
    def product(self) -> Product:
        """The instruction."""

    @property
    def dtype(self) -> str:
        """Of the input."""

    @property
    def sums(self) -> str:
        """The element type of tiles of sums."""

    @property
    def zero(self) -> int:
        """The byte that borders are filled with."""

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """Declare the arguments behind the weights.

        Returns:
            What sums begin with, for each output in whole tiles; and what finishes them.
        """

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """The frame around the statements of the function."""


@dataclass(frozen=True)
class Bytes:
    """u8 activations times s8 weights, as `nmcompile.kernels.integers` says.

    Arguments: offset, scale, steps, [residual], out.
    """

    epilogue: IntegerEpilogue
    zero: int
    product: Product = "int8"
    dtype: str = "uint8"
    sums: str = "int32"

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """See `Numbers`."""
        offset = func.tensor("offset", (padded_outputs(outputs),), "int32")
        scale = func.tensor("scale", (padded_outputs(outputs),))
        steps = func.tensor("steps", (len(STEPS),))
        residual, out = func.output(out_shape, self.epilogue, self.epilogue.out, "uint8")
        return offset, Finish(Requantiser(self.epilogue, steps), scale, residual, out, outputs)

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """See `Numbers`."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Brain:
    """bfloat16 with sums in float32.

    Arguments: bias, [residual], out.
    """

    epilogue: Epilogue
    zero: int = 0
    product: Product = "bfloat16"
    dtype: str = "bfloat16"
    sums: str = "float32"

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """See `Numbers`."""
        bias = func.tensor("bias", (padded_outputs(outputs),))
        added, out = declare_output(func, out_shape, self.epilogue)
        return bias, BrainFinish(self.epilogue.activation, added, out, outputs)

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """See `Numbers`."""
        return conversions()
