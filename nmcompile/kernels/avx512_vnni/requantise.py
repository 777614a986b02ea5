"""From exact int32 sums to what a layer writes, as `nmcompile.kernels.integers` says."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, activate, extreme, splat
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    pack_bytes,
    pack_words,
    round_to_int,
    round_to_whole,
)
from nmcompile.kernels.integers import STEPS, IntegerEpilogue


class Requantiser:
    """Emits the epilogue of one function; `steps` is its argument of `len(STEPS)` floats."""

    def __init__(self, epilogue: IntegerEpilogue, steps: Buffer) -> None:
        self.epilogue, self._steps = epilogue, steps

    def real(
        self, sums: Expr, scale: Expr, residual: Expr | None = None, late_bias: Expr | None = None
    ) -> Expr:
        """float32x16 in steps of the output, before the last rounding; real numbers for float32.

        Args:
            sums: int32x16.
            scale: float32x16, of the same outputs.
            residual: int32x16, raw values of the residual, or float32x16, where it is real; None if
                the epilogue has none.
            late_bias: float32x16, of the same outputs; None likewise.
        """
        epilogue = self.epilogue
        value = T.bind(T.Cast("float32x16", sums) * scale)
        if epilogue.middle:
            # Limits are whole numbers: clamping first gives the same, and takes fewer conversions.
            low, high = self._step("middle_low"), self._step("middle_high")
            limited = T.bind(extreme("min", extreme("max", value, low), high))
            value = T.bind(round_to_whole(limited) * self._step("middle_factor"))
        if late_bias is not None:
            value = T.bind(value + late_bias)
        if residual is not None and epilogue.real_residual:
            value = T.bind(value + residual)
        elif residual is not None:
            added = T.Cast("float32x16", residual) * self._step("residual_factor")
            value = T.bind(value + self._step("shift") + added)
        if epilogue.activation.kind != "none":
            value = T.bind(activate(value, epilogue.activation) * self._step("factor"))
        return value

    def pack(self, values: Sequence[Expr]) -> Expr:
        """Four float32x16 of `real` as 64 bytes, one vector's 16 after the other's.

        The packs leave them in turn by 128 bits; one permutation of dwords puts them in order.
        """
        return self._order(self._packed(values))

    def pack_unpacked(self, values: Sequence[Expr]) -> Expr:
        """As `pack`, where the sums come from `unpack`ed bytes, whose order the packs restore."""
        return self._packed(values)

    def _packed(self, values: Sequence[Expr]) -> Expr:
        epilogue = self.epilogue
        whole = [T.bind(round_to_int(value)) for value in values]
        words = [T.bind(pack_words(whole[i], whole[i + 1])) for i in (0, 2)]
        if epilogue.zero:
            zero = T.broadcast(T.int16(epilogue.zero), 2 * LANES)
            name = "llvm.sadd.sat"
            words = [T.bind(T.call_llvm_pure_intrin("int16x32", name, w, zero)) for w in words]
        packed = T.bind(pack_bytes(*words))
        if (epilogue.low, epilogue.high) != (0, 255):
            bounded = T.reinterpret("uint8x64", packed)
            if epilogue.low:
                bounded = T.max(bounded, T.broadcast(T.uint8(epilogue.low), BYTES))
            if epilogue.high < 255:
                bounded = T.min(bounded, T.broadcast(T.uint8(epilogue.high), BYTES))
            packed = T.bind(T.reinterpret("int8x64", bounded))
        return packed

    @staticmethod
    def _order(packed: Expr) -> Expr:
        lanes = [4 * (lane % 4) + lane // 4 for lane in range(LANES)]
        dwords = T.Shuffle([T.reinterpret("int32x16", packed)], lanes)
        return T.bind(T.reinterpret("int8x64", dwords))

    def _step(self, name: str) -> Expr:
        return splat(self._steps[STEPS.index(name)])
