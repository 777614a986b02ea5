"""bfloat16 as what lanes and tiles multiply."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from nmcompile.kernels.avx512_bf16.emit import SIZE, declare_output, dot, instructions
from nmcompile.kernels.avx512_bf16.finish import BrainFinish
from nmcompile.kernels.avx512_vnni.lanes.config import padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.finish import Finisher
from nmcompile.kernels.prim_func import Buffer, Expr, PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue


@dataclass(frozen=True)
class Brain:
    """bfloat16 with sums in float32; see `nmcompile.kernels.avx512_vnni.lanes.numbers.Numbers`.

    Arguments: bias, [residual], out.
    """

    epilogue: Epilogue
    zero: int = 0
    size: int = SIZE
    dtype: str = "bfloat16"
    sums: str = "float32"

    def dot(self, sums: Expr, x: Expr, weights: Expr) -> Expr:
        """See `Numbers`."""
        return dot(sums, weights, x)

    def declare(
        self, func: PrimFuncBuilder, out_shape: tuple[int, ...], outputs: int
    ) -> tuple[Buffer, Finisher]:
        """See `Numbers`."""
        bias = func.tensor("bias", (padded_outputs(outputs),))
        added, out = declare_output(func, out_shape, self.epilogue)
        return bias, BrainFinish(self.epilogue.activation, added, out, outputs)

    def instructions(self) -> contextlib.AbstractContextManager[object]:
        """See `Numbers`."""
        return instructions()
