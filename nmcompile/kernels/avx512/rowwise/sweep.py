"""Sweeps over the vectors of a row, and means over it."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, either, lanes, over_lanes, splat

WIDE = 4 * LANES  # numbers behind an axis that are gone along together
AT_ONCE = 4  # vectors whose sums are kept apart, so that no sum waits for the one before


def sweep(length: int, visit: Callable[[Expr, int, int], None]) -> None:
    """`visit(first, lane, active)` for each vector of `length` floats.

    `first` is where it begins, `active` how many of its floats are in the row, and `lane` which of
    `AT_ONCE` accumulators it is for.
    """
    full, rest = divmod(length, LANES)
    steps, single = divmod(full, AT_ONCE)
    if steps:
        with T.serial(0, steps) as step:
            for lane in range(AT_ONCE):
                visit(T.bind((step * AT_ONCE + lane) * LANES), lane, LANES)
    for lane in range(single):
        visit(T.int32((steps * AT_ONCE + lane) * LANES), lane, LANES)
    if rest:
        visit(T.int32(full * LANES), AT_ONCE - 1, rest)


def mean_over(length: int, value: Callable[[Expr, int], Expr]) -> Expr:
    """The mean of `value(at, active)` over a row, in every lane; lanes behind the last are 0."""
    sums: Buffer = T.alloc_buffer((AT_ONCE * LANES,), scope="local")
    places = [lanes(lane * LANES) for lane in range(AT_ONCE)]
    for place in places:
        T.buffer_store(sums, splat(0.0), [place])

    def add(at: Expr, lane: int, active: int) -> None:
        T.buffer_store(sums, sums[places[lane]] + value(at, active), [places[lane]])

    sweep(length, add)
    total = T.bind((sums[places[0]] + sums[places[1]]) + (sums[places[2]] + sums[places[3]]))
    return over_lanes(total, lambda a, b: a + b) * splat(1.0 / length)


def over_columns(outer: int, inner: int, block: Callable[[Expr, Expr, int], None]) -> None:
    """`block(image, first, count)` for up to `WIDE` numbers beside each other, over all threads.

    Args:
        outer: in front of the axis that a kernel goes along.
        inner: behind it, where `first` counts.
        block: emits the whole way along the axis.
    """
    blocks = -(-inner // WIDE)
    last = inner - (blocks - 1) * WIDE
    with T.parallel(0, outer * blocks) as item:
        image, column = T.bind(item // blocks), T.bind(item % blocks)
        either(
            column == blocks - 1,
            last != WIDE and blocks > 1,
            lambda final: block(image, column * WIDE, last if final else WIDE),
        )
