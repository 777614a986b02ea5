"""Operands of products that lie anywhere in a tensor: where they begin, and copies without gaps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, splat, store, transpose
from nmcompile.kernels.spec import Strides


@dataclass(frozen=True)
class Lines:
    """`count` lines of `size` numbers; line and number: from one to the next, in elements."""

    count: int
    size: int
    line: int
    number: int
    scale: float = 1.0


def start_of(lead: tuple[int, ...], where: Strides, pair: Expr) -> Expr:
    """The first element of an operand, for a pair counted over the whole batch."""
    start: Expr = T.int32(where.offset)
    behind = math.prod(lead)
    for extent, stride in zip(lead, where.lead, strict=True):
        around, behind = behind, behind // extent
        if stride:
            start = start + pair % around // behind * stride
    return T.bind(start)


def pack_lines(lines: Lines, source: Buffer, start: Expr, packed: Buffer, into: Expr) -> None:
    """Vectors of 16 lines, times the scale: [vector][number][16], zeros behind the last line."""
    full, rest = divmod(lines.count, LANES)

    def vector(v: Expr, count: int) -> None:
        base = T.bind(start + v * (LANES * lines.line))
        target = T.bind(into + v * (LANES * lines.size))
        whole, ragged = divmod(lines.size, LANES)
        if lines.number != 1:
            with T.serial(0, lines.size) as number:
                _pack_number(lines, source, base, packed, target, number, count)
            return
        if whole:
            with T.serial(0, whole) as group:
                _pack_square(
                    lines, source, base + group * LANES, packed, target + group * (LANES * LANES),
                    count, LANES,
                )  # fmt: skip
        if ragged:
            at = whole * LANES
            _pack_square(lines, source, base + at, packed, target + at * LANES, count, ragged)

    if full:
        with T.serial(0, full) as v:
            vector(v, LANES)
    if rest:
        vector(T.int32(full), rest)


def _pack_square(
    lines: Lines, source: Buffer, base: Expr, packed: Buffer, target: Expr, count: int, active: int
) -> None:
    """`count` lines of `active` consecutive numbers, transposed."""
    rows = [
        T.bind(load(source, base + line * lines.line, active)) if line < count else splat(0.0)
        for line in range(LANES)
    ]
    for number, column in enumerate(transpose(rows)[:active]):
        store(packed, target + number * LANES, _scaled(column, lines.scale))


def _pack_number(
    lines: Lines, source: Buffer, base: Expr, packed: Buffer, target: Expr, number: Expr,
    count: int,
) -> None:  # fmt: skip
    """One number of `count` lines."""
    at = T.bind(base + number * lines.number)
    into = T.bind(target + number * LANES)
    if lines.line == 1:
        store(packed, into, _scaled(load(source, at, count), lines.scale))
        return
    if count < LANES:
        store(packed, into, splat(0.0))
    with T.serial(0, count) as line:
        value = source[at + line * lines.line] * T.float32(lines.scale)
        T.buffer_store(packed, value, [into + line])


def _scaled(value: Expr, scale: float) -> Expr:
    return value if scale == 1.0 else value * splat(scale)
