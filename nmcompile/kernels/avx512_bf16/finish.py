"""What becomes of float32 sums: residual, activation, rounded to bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, LONG_ACTIVATIONS, Buffer, Expr, activate
from nmcompile.kernels.avx512_bf16.emit import PAIR, load_floats, store_floats
from nmcompile.kernels.spec import Activation


@dataclass(frozen=True)
class BrainFinish:
    """Writes tiles of one function; sums begin with the bias.

    residual, out: bytes of (pixels, channels).
    """

    activation: Activation
    residual: Buffer | None
    out: Buffer
    channels: int

    @property
    def long(self) -> bool:
        """See `Finisher`."""
        return self.activation.kind in LONG_ACTIVATIONS

    def columns(self, first: Expr, vectors: int) -> list[Expr]:
        """Only how many there are."""
        return [first] * vectors

    def pixels(
        self,
        pixels: int,
        sums: Callable[[int, int], Expr],
        columns: Sequence[Expr],
        at: Expr,
        outputs: int,
    ) -> None:
        """See `Finisher`."""
        for t in range(pixels):
            for u in range(0, len(columns), PAIR):
                where, left = at + (t * self.channels + u * LANES), outputs - u * LANES
                values = []
                for v in range(min(PAIR, len(columns) - u)):
                    value = T.bind(sums(t, u + v))
                    if self.residual is not None:
                        active = min(LANES, left - v * LANES)
                        value = T.bind(
                            value + load_floats(self.residual, where + v * LANES, active)
                        )
                    values.append(T.bind(activate(value, self.activation)))
                store_floats(self.out, where, values, left)
