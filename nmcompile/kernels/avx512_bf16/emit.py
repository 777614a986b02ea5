"""Small vocabulary for bfloat16: loads as float32, stores rounded to the nearest, halves to even.

Values lie in flat buffers of bytes. TVM has no bfloat16 in registers, so the instructions that
round and multiply come as LLVM's own text, which is taken into the function's module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import tvm
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, splat
from nmcompile.kernels.avx512_vnni.emit import BYTES, load_bytes, store_bytes
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue

SIZE = 2  # bytes
PAIR = 2  # vectors of float32 that one of bfloat16 holds

_ROUND, _DOT = "nmcompile_to_bfloat16", "nmcompile_dot_bfloat16"
_FEATURES = "+avx512f,+avx512bw,+avx512bf16"
_TEXT = f"""
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
define linkonce_odr hidden <32 x i16> @{_ROUND}(<16 x float> %low, <16 x float> %high) alwaysinline nounwind "target-features"="{_FEATURES}" {{
  %pair = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %high, <16 x float> %low)
  %bits = bitcast <32 x bfloat> %pair to <32 x i16>
  ret <32 x i16> %bits
}}
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr hidden <16 x float> @{_DOT}(<16 x float> %sums, <64 x i8> %x, <64 x i8> %weights) alwaysinline nounwind "target-features"="{_FEATURES}" {{
  %first = bitcast <64 x i8> %x to <32 x bfloat>
  %second = bitcast <64 x i8> %weights to <32 x bfloat>
  %added = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %first, <32 x bfloat> %second)
  ret <16 x float> %added
}}
"""  # noqa: E501


def instructions() -> AbstractContextManager[object]:
    """The frame around statements that round or multiply."""
    frame: AbstractContextManager[object] = T.attr(
        T.int32(0), "pragma_import_llvm", tvm.ir.StringImm(_TEXT)
    )
    return frame


def declare_output(
    func: PrimFuncBuilder, shape: tuple[int, ...], epilogue: Epilogue
) -> tuple[Buffer | None, Buffer]:
    """Declare the last arguments, [residual] and out; their bytes, the same ones in place."""
    added, written = func.output(shape, epilogue, "bfloat16", "bfloat16")
    out = func.bytes_of(written)
    if added is None or epilogue.in_place:
        return None if added is None else out, out
    return func.bytes_of(added), out


def load_floats(buffer: Buffer, start: Expr, active: int = LANES) -> Expr:
    """16 values from element `start` on as float32x16; those from `active` on are 0, unread."""
    width = LANES * SIZE
    words = load_bytes(buffer, start * SIZE, active * SIZE, width)
    wide = T.Cast(f"uint32x{LANES}", T.reinterpret(f"uint16x{LANES}", words))
    return T.bind(T.reinterpret(f"float32x{LANES}", wide << splat(T.uint32(16))))


def round_pair(low: Expr, high: Expr) -> Expr:
    """Two float32x16 as 64 bytes of bfloat16."""
    words = T.call_extern(f"int16x{PAIR * LANES}", _ROUND, low, high)
    return T.bind(T.reinterpret(f"int8x{BYTES}", words))


def dot(sums: Expr, x: Expr, weights: Expr) -> Expr:
    """vdpbf16ps: float32x16 sums plus, per lane, two products of int8x64 as bfloat16.

    Subnormal numbers count as zeros there, and each product is rounded as it is added.
    """
    return T.call_extern(f"float32x{LANES}", _DOT, sums, x, weights)


def store_floats(buffer: Buffer, start: Expr, values: list[Expr], active: int) -> None:
    """Store up to two float32x16 from element `start` on, the first `active` elements of them."""
    packed = round_pair(values[0], values[-1])
    if len(values) < PAIR:
        half = BYTES // PAIR
        packed = T.Shuffle([packed], list(range(half)))
    store_bytes(buffer, start * SIZE, packed, min(active, len(values) * LANES) * SIZE)
