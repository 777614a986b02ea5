"""Sweeps over the vectors of a row."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr

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
