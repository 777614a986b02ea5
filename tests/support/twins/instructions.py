"""What AVX-512's instructions do, as LLVM's text without their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_LANES, _BYTES, _GROUP = 16, 64, 16  # dwords and bytes of a vector, bytes of 128 bits
# The calling convention of wide vectors depends on the features.
_INLINE = 'alwaysinline nounwind "target-cpu"="x86-64-v3"'
_CALLED = 'noinline nounwind "target-cpu"="x86-64-v3"'


def _list(values: Iterable[int]) -> str:
    return "<" + ", ".join(f"i32 {value}" for value in values) + ">"


def _shuffle(name: str, kind: str, a: str, b: str, order: list[int]) -> str:
    return f"  {name} = shufflevector {kind} {a}, {kind} {b}, <{len(order)} x i32> {_list(order)}\n"


def _define(name: str, returns: str, operands: str, body: str, how: str = _CALLED) -> str:
    return f"define linkonce_odr hidden {returns} @{name}({operands}) {how} {{\n{body}}}\n"


def _extreme(name: str, order: str) -> str:
    """vmaxps, vminps: b where either is NaN."""
    body = f"""\
  %first = fcmp {order} <16 x float> %a, %b
  %best = select <16 x i1> %first, <16 x float> %a, <16 x float> %b
  ret <16 x float> %best
"""
    return _define(
        name, "<16 x float>", "<16 x float> %a, <16 x float> %b, i32 %rounding", body, _INLINE
    )


def _dot_bytes(name: str) -> str:
    """vpdpbusd: four unsigned bytes of x times signed ones of w are added to each lane."""
    parts = [
        _shuffle(f"%p{k}", "<64 x i16>", "%p", "poison", list(range(k, 64, 4))) for k in range(4)
    ]
    wide = [f"  %w{k} = sext <16 x i16> %p{k} to <16 x i32>\n" for k in range(4)]
    body = f"""\
  %xs = zext <64 x i8> %x to <64 x i16>
  %ws = sext <64 x i8> %w to <64 x i16>
  %p = mul <64 x i16> %xs, %ws
{"".join(parts + wide)}\
  %low = add <16 x i32> %w0, %w1
  %high = add <16 x i32> %w2, %w3
  %both = add <16 x i32> %low, %high
  %all = add <16 x i32> %sums, %both
  ret <16 x i32> %all
"""
    return _define(name, "<16 x i32>", "<16 x i32> %sums, <64 x i8> %x, <64 x i8> %w", body)


def _multiply_add(name: str) -> str:
    """vpmaddwd: the products of two signed words each, added."""
    body = f"""\
  %as = sext <32 x i16> %a to <32 x i32>
  %bs = sext <32 x i16> %b to <32 x i32>
  %p = mul <32 x i32> %as, %bs
{_shuffle("%even", "<32 x i32>", "%p", "poison", list(range(0, 32, 2)))}\
{_shuffle("%odd", "<32 x i32>", "%p", "poison", list(range(1, 32, 2)))}\
  %sums = add <16 x i32> %even, %odd
  ret <16 x i32> %sums
"""
    return _define(name, "<16 x i32>", "<32 x i16> %a, <32 x i16> %b", body)


def _to_int(name: str) -> str:
    """vcvtps2dq: to the nearest, halves to even; the least number out of range and for NaN."""
    low, high, least = (f"<{', '.join([text] * _LANES)}>" for text in (
        "float 0xC1E0000000000000", "float 0x41E0000000000000", "i32 -2147483648",
    ))  # fmt: skip
    body = f"""\
  %whole = call <16 x float> @llvm.rint.v16f32(<16 x float> %x)
  %above = fcmp oge <16 x float> %whole, {low}
  %below = fcmp olt <16 x float> %whole, {high}
  %fits = and <16 x i1> %above, %below
  %safe = select <16 x i1> %fits, <16 x float> %whole, <16 x float> zeroinitializer
  %ints = fptosi <16 x float> %safe to <16 x i32>
  %y = select <16 x i1> %fits, <16 x i32> %ints, <16 x i32> {least}
  ret <16 x i32> %y
"""
    operands = "<16 x float> %x, <16 x i32> %others, i16 %mask, i32 %rounding"
    declared = "declare <16 x float> @llvm.rint.v16f32(<16 x float>)\n"
    return declared + _define(name, "<16 x i32>", operands, body)


def _pack(name: str, bits: int, low: int, high: int) -> str:
    """vpackssdw, vpackuswb: saturated to half the size, a and b in turn by 128 bits."""
    wide, narrow, count = f"i{bits}", f"i{bits // 2}", 512 // bits
    half = count // 4  # elements of 128 bits
    order = [
        source * count + group * half + k
        for group in range(4)
        for source in range(2)
        for k in range(half)
    ]
    both, packed = f"<{2 * count} x {wide}>", f"<{2 * count} x {narrow}>"
    bound = {
        edge: f"<{', '.join([f'{wide} {value}'] * (2 * count))}>"
        for edge, value in (("low", low), ("high", high))
    }
    body = f"""\
{_shuffle("%both", f"<{count} x {wide}>", "%a", "%b", order)}\
  %small = icmp slt {both} %both, {bound["low"]}
  %raised = select <{2 * count} x i1> %small, {both} {bound["low"]}, {both} %both
  %large = icmp sgt {both} %raised, {bound["high"]}
  %bounded = select <{2 * count} x i1> %large, {both} {bound["high"]}, {both} %raised
  %packed = trunc {both} %bounded to {packed}
  ret {packed} %packed
"""
    operands = f"<{count} x {wide}> %a, <{count} x {wide}> %b"
    return _define(name, packed, operands, body)


def _lookup(name: str, tables: tuple[str, ...]) -> str:
    """vpermb, vpermi2b: bytes of one or two vectors, by the low bits of an index each."""
    size = len(tables) * _BYTES
    stores = "".join(
        f"  %part{place} = getelementptr i8, ptr %table, i64 {place * _BYTES}\n"
        f"  store <64 x i8> {table}, ptr %part{place}, align 64\n"
        for place, table in enumerate(tables)
    )
    body = f"""\
entry:
  %table = alloca [{size} x i8], align 64
  %places = alloca [64 x i8], align 64
  store <64 x i8> %index, ptr %places, align 64
{stores}\
  br label %loop
loop:
  %k = phi i64 [ 0, %entry ], [ %next, %loop ]
  %place = getelementptr i8, ptr %places, i64 %k
  %i = load i8, ptr %place
  %low = and i8 %i, {size - 1}
  %wide = zext i8 %low to i64
  %from = getelementptr i8, ptr %table, i64 %wide
  %byte = load i8, ptr %from
  store i8 %byte, ptr %place
  %next = add i64 %k, 1
  %more = icmp ult i64 %next, 64
  br i1 %more, label %loop, label %done
done:
  %y = load <64 x i8>, ptr %places, align 64
  ret <64 x i8> %y
"""
    first, *others = (f"<64 x i8> {table}" for table in tables)
    operands = ", ".join([first, "<64 x i8> %index", *others])
    return _define(name, "<64 x i8>", operands, body)


def _expand(name: str) -> str:
    """vexpandps: the next value in each lane of the mask, `others` elsewhere."""

    def lines() -> Iterator[str]:
        yield "  %table = alloca [16 x float], align 64"
        yield "  store <16 x float> %values, ptr %table, align 64"
        count = "0"
        result = "%others"
        for k in range(_LANES):
            yield f"  %m{k} = extractelement <16 x i32> %mask, i32 {k}"
            yield f"  %a{k} = getelementptr float, ptr %table, i32 {count}"
            yield f"  %v{k} = load float, ptr %a{k}"
            yield f"  %o{k} = extractelement <16 x float> %others, i32 {k}"
            yield f"  %t{k} = icmp ne i32 %m{k}, 0"
            yield f"  %s{k} = select i1 %t{k}, float %v{k}, float %o{k}"
            yield f"  %y{k} = insertelement <16 x float> {result}, float %s{k}, i32 {k}"
            yield f"  %c{k} = add i32 {count}, %m{k}"
            count, result = f"%c{k}", f"%y{k}"
        yield f"  ret <16 x float> {result}\n"

    operands = "<16 x float> %values, <16 x float> %others, <16 x i32> %mask"
    return _define(name, "<16 x float>", operands, "\n".join(lines()))


def _pick(name: str, reach: int) -> str:
    """vpermps, vpermilps: floats of the whole vector, or of each lane's 128 bits, by low bits."""

    def lines() -> Iterator[str]:
        yield "  %table = alloca [16 x float], align 64"
        yield "  store <16 x float> %source, ptr %table, align 64"
        result = "poison"
        for k in range(_LANES):
            yield f"  %i{k} = extractelement <16 x i32> %places, i32 {k}"
            yield f"  %l{k} = and i32 %i{k}, {reach - 1}"
            yield f"  %p{k} = or i32 %l{k}, {k // reach * reach}"
            yield f"  %a{k} = getelementptr float, ptr %table, i32 %p{k}"
            yield f"  %v{k} = load float, ptr %a{k}"
            yield f"  %y{k} = insertelement <16 x float> {result}, float %v{k}, i32 {k}"
            result = f"%y{k}"
        yield f"  ret <16 x float> {result}\n"

    operands = "<16 x float> %source, <16 x i32> %places"
    return _define(name, "<16 x float>", operands, "\n".join(lines()))


@dataclass(frozen=True)
class Twin:
    """A function: its name in LLVM's text, and the text that defines it."""

    name: str
    text: str


def _twin(define: Callable[..., str], name: str, *rest: Any) -> Twin:
    own = f"twin_{name}"
    return Twin(own, define(own, *rest))


TWINS = {
    "llvm.x86.avx512.max.ps.512": _twin(_extreme, "vmaxps", "ogt"),
    "llvm.x86.avx512.min.ps.512": _twin(_extreme, "vminps", "olt"),
    "llvm.x86.avx512.mask.expand": _twin(_expand, "vexpandps"),
    "llvm.x86.avx512.permvar.sf.512": _twin(_pick, "vpermps", 16),
    "llvm.x86.avx512.vpermilvar.ps.512": _twin(_pick, "vpermilps", 4),
    "llvm.x86.avx512.vpdpbusd.512": _twin(_dot_bytes, "vpdpbusd"),
    "llvm.x86.avx512.pmaddw.d.512": _twin(_multiply_add, "vpmaddwd"),
    "llvm.x86.avx512.mask.cvtps2dq.512": _twin(_to_int, "vcvtps2dq"),
    "llvm.x86.avx512.packssdw.512": _twin(_pack, "vpackssdw", 32, -(2**15), 2**15 - 1),
    "llvm.x86.avx512.packuswb.512": _twin(_pack, "vpackuswb", 16, 0, 255),
    "llvm.x86.avx512.permvar.qi.512": _twin(_lookup, "vpermb", ("%a",)),
    "llvm.x86.avx512.vpermi2var.qi.512": _twin(_lookup, "vpermi2b", ("%a", "%b")),
}
"""By the names that kernels call."""


def _vector(value: int, count: int = _LANES) -> str:
    return f"<{', '.join([f'i32 {value}'] * count)}>"


def _round_brain(source: str, name: str) -> str:
    """Float32 to the bits of bfloat16 in dwords: halves to even, subnormal numbers to zero."""
    return f"""\
  %{name}b = bitcast <16 x float> {source} to <16 x i32>
  %{name}h = lshr <16 x i32> %{name}b, {_vector(16)}
  %{name}l = and <16 x i32> %{name}h, {_vector(1)}
  %{name}u = add <16 x i32> %{name}l, {_vector(0x7FFF)}
  %{name}r = add <16 x i32> %{name}b, %{name}u
  %{name}s = lshr <16 x i32> %{name}r, {_vector(16)}
  %{name}e = and <16 x i32> %{name}b, {_vector(0x7F800000)}
  %{name}z = icmp eq <16 x i32> %{name}e, zeroinitializer
  %{name}g = and <16 x i32> %{name}h, {_vector(0x8000)}
  %{name}q = or <16 x i32> %{name}h, {_vector(0x40)}
  %{name}n = fcmp uno <16 x float> {source}, {source}
  %{name}f = select <16 x i1> %{name}z, <16 x i32> %{name}g, <16 x i32> %{name}s
  %{name}w = select <16 x i1> %{name}n, <16 x i32> %{name}q, <16 x i32> %{name}f
  %{name} = trunc <16 x i32> %{name}w to <16 x i16>
"""


def _widen_brain(source: str, name: str, place: int) -> str:
    """One of the two bfloat16 in each lane as float32, subnormal numbers as zero."""
    moved = (
        f"  %{name}m = shl <16 x i32> {source}, {_vector(16)}\n"
        if place == 0
        else f"  %{name}m = and <16 x i32> {source}, {_vector(-65536)}\n"
    )
    return f"""\
{moved}\
  %{name}e = and <16 x i32> %{name}m, {_vector(0x7F800000)}
  %{name}z = icmp eq <16 x i32> %{name}e, zeroinitializer
  %{name}g = and <16 x i32> %{name}m, {_vector(-(2**31))}
  %{name}s = select <16 x i1> %{name}z, <16 x i32> %{name}g, <16 x i32> %{name}m
  %{name} = bitcast <16 x i32> %{name}s to <16 x float>
"""


_FMA = "call <16 x float> @llvm.fma.v16f32(<16 x float>"

BRAIN = (
    "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)\n"
    + _define(
        "nmcompile_to_bfloat16",
        "<32 x i16>",
        "<16 x float> %low, <16 x float> %high",
        _round_brain("%low", "l")
        + _round_brain("%high", "h")
        + _shuffle("%both", "<16 x i16>", "%l", "%h", list(range(32)))
        + "  ret <32 x i16> %both\n",
    )
    + _define(
        "nmcompile_dot_bfloat16",
        "<16 x float>",
        "<16 x float> %sums, <64 x i8> %x, <64 x i8> %weights",
        "  %x32 = bitcast <64 x i8> %x to <16 x i32>\n"
        "  %w32 = bitcast <64 x i8> %weights to <16 x i32>\n"
        + "".join(
            _widen_brain(source, f"{name}{place}", place)
            for source, name in (("%x32", "a"), ("%w32", "b"))
            for place in (0, 1)
        )
        + f"  %first = {_FMA} %a1, <16 x float> %b1, <16 x float> %sums)\n"
        f"  %both = {_FMA} %a0, <16 x float> %b0, <16 x float> %first)\n"
        "  ret <16 x float> %both\n",
    )
)
"""In the place of the text in `nmcompile.kernels.avx512_bf16.emit`."""
