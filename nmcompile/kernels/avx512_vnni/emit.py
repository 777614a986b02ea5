"""Small vocabulary for writing AVX-512 VNNI TIR: vectors of bytes, products of four, permutations.

Vectors of bytes are int8x64 whatever their sign: instructions say how they read them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, extreme, masked_load, splat

BYTES = 64  # of one 512-bit register
QUAD = 4  # bytes that one lane of a product adds up


def load_bytes(buffer: Buffer, start: Expr, active: int = BYTES, width: int = BYTES) -> Expr:
    """`width` consecutive bytes of a flat buffer; those from `active` on are zero, unread."""
    index = T.ramp(start, 1, width)
    if active >= width:
        return T.reinterpret(f"int8x{width}", buffer[index])
    mask = T.ramp(0, 1, width) < splat(T.int32(active), width)
    return T.reinterpret(f"int8x{width}", masked_load(buffer, index, mask, width))


def store_bytes(buffer: Buffer, start: Expr, value: Expr, active: int) -> None:
    """Store the first `active` bytes of a vector of bytes to a flat buffer."""
    width = int(value.ty.dtype.lanes)
    value = T.reinterpret(f"{buffer.dtype}x{width}", value)
    index = T.ramp(start, 1, width)
    if active >= width:
        T.buffer_store(buffer, value, [index])
        return
    mask = T.ramp(0, 1, width) < splat(T.int32(active), width)
    T.evaluate(tirx.op.masked_store(buffer, value, index, mask))


def prefetch_line(buffer: Buffer, start: Expr) -> None:
    """Ask for a cache line to be brought to L2; harmless past the end."""
    address = tirx.op.address_of(buffer[start])
    read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data))


def broadcast_quad(buffer: Buffer, start: Expr) -> Expr:
    """Four consecutive bytes at any address in every lane, as int8x64: one load."""
    four = T.reinterpret("int32", buffer[T.ramp(start, 1, QUAD)])
    return T.reinterpret(f"int8x{BYTES}", T.broadcast(four, LANES))


def dot(sums: Expr, x: Expr, weights: Expr) -> Expr:
    """vpdpbusd: int32x16 sums plus, per lane, four unsigned bytes of x times signed weights."""
    name = "llvm.x86.avx512.vpdpbusd.512"
    return T.call_llvm_pure_intrin("int32x16", name, sums, x, weights)


def pick_bytes(source: Expr, index: Expr) -> Expr:
    """vpermb: byte index[i] of `source` at each place i."""
    return T.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.permvar.qi.512", source, index)


def widen_bytes(buffer: Buffer, start: Expr, active: int = LANES) -> Expr:
    """16 unsigned bytes of a flat buffer as int32x16; those from `active` on are zero, unread."""
    index = T.ramp(start, 1, LANES)
    if active >= LANES:
        return T.Cast("int32x16", buffer[index])
    mask = T.ramp(0, 1, LANES) < splat(T.int32(active))
    return T.Cast("int32x16", masked_load(buffer, index, mask))


def unpack(a: Expr, b: Expr, *, high: bool, size: int) -> Expr:
    """Elements of `size` bytes of a and b in turn, from one half of each 128 bits."""
    within, whole = 16 // size, BYTES // size
    half = within // 2
    order: list[int] = []
    for lane in range(0, whole, within):
        for k in range(half):
            place = lane + high * half + k
            order += [place, whole + place]
    kind = f"int{8 * size}x{whole}"
    mixed = T.Shuffle([T.reinterpret(kind, a), T.reinterpret(kind, b)], order)
    return T.bind(T.reinterpret("int8x64", mixed))


def round_to_int(value: Expr) -> Expr:
    """float32x16 to int32x16, halves to even; out of int32's range it is undefined here."""
    current_rounding = T.int32(4)
    zero = T.broadcast(T.int32(0), LANES)
    name = "llvm.x86.avx512.mask.cvtps2dq.512"
    return T.call_llvm_pure_intrin("int32x16", name, value, zero, T.int16(-1), current_rounding)


def round_steps(value: Expr, zero: int, low: int, high: int) -> Expr:
    """Numbers of steps as int32x16 from `low` to `high`: rint(value) + zero.

    Values beyond the limits become the limits, infinities too; NaN becomes `low`.
    """
    # The limits go second: the instructions give that operand where the other is NaN.
    value = extreme("max", value, splat(float(low - zero)))
    value = extreme("min", value, splat(float(high - zero)))
    return T.bind(round_to_int(value) + splat(T.int32(zero)))


def round_to_whole(value: Expr) -> Expr:
    """float32x16 to whole numbers in float32x16, halves to even."""
    return T.call_llvm_pure_intrin("float32x16", "llvm.rint", value)


def pack_words(a: Expr, b: Expr) -> Expr:
    """vpackssdw: two int32x16 as int16x32, saturated, in turn by 128 bits."""
    return T.call_llvm_pure_intrin("int16x32", "llvm.x86.avx512.packssdw.512", a, b)


def pack_bytes(a: Expr, b: Expr) -> Expr:
    """vpackuswb: two int16x32 as unsigned bytes, saturated, in turn by 128 bits."""
    return T.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.packuswb.512", a, b)


def bytes_of(value: int) -> Expr:
    """One number of 0 to 255 in every byte of int8x64."""
    return T.broadcast(T.int8(value - 256 if value > 127 else value), BYTES)


def constant_bytes(values: Sequence[int]) -> Expr:
    """64 numbers of 0 to 255 as int8x64."""
    return T.Shuffle([bytes_of(value).value for value in values], list(range(BYTES)))


def pick_bytes_of_two(a: Expr, index: Expr, b: Expr) -> Expr:
    """vpermi2b: at each place i, byte index[i] modulo 128 of the 128 bytes of a and b."""
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return T.call_llvm_pure_intrin("int8x64", name, a, index, b)


def spread(value: Expr) -> list[Expr]:
    """64 unsigned bytes as four int32x16, in the order that `unpack`s leave and the packs undo."""
    zero = T.broadcast(T.int8(0), BYTES)
    return [T.bind(T.reinterpret("int32x16", part)) for part in interleave([value] + 3 * [zero])]


def interleave(rows: Sequence[Expr], size: int = 1) -> list[Expr]:
    """Transpose [4 rows][4 parts] within every 128 bits, where parts are four of `size` bytes.

    Of bytes: lane 4 * l + k of vector v holds the four rows of place 16 * l + 4 * v + k, which is
    the order that the packs undo. Of dwords: vector v holds part v of all rows.
    """
    halves = [
        [unpack(a, b, high=high, size=size) for high in (False, True)]
        for a, b in (rows[:2], rows[2:])
    ]
    return [
        unpack(halves[0][half], halves[1][half], high=high, size=2 * size)
        for half in (0, 1)
        for high in (False, True)
    ]


def multiply_add(a: Expr, b: Expr) -> Expr:
    """vpmaddwd: per lane of two int32x16 the sum of the products of their signed words."""
    words = [T.reinterpret("int16x32", value) for value in (a, b)]
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.pmaddw.d.512", *words)
