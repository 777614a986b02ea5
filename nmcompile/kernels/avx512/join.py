"""Joins the values of groups of images into the value of the whole batch."""

from __future__ import annotations

import math
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, store
from nmcompile.kernels.prim_func import PrimFuncBuilder

NAME = "join_f32__avx512"
PIECE = 4096  # floats that one work item copies: long enough for the prefetcher, short for balance


def emit_join(name: str, groups: int, shape: tuple[int, ...]) -> Any:
    """The TIR function (x_0, ..., x_groups-1, out): each x of `shape`, out groups times as deep."""
    size = math.prod(shape)
    pieces, rest = divmod(size, PIECE)
    with PrimFuncBuilder(name) as func:
        parts = [func.tensor(f"x{index}", shape) for index in range(groups)]
        out = func.flat(func.tensor("out", (groups * shape[0], *shape[1:])))
        for index, part in enumerate(map(func.flat, parts)):
            if pieces:
                with T.parallel(0, pieces) as piece:
                    _copy(out, index * size, part, T.bind(piece * PIECE), PIECE // LANES)
            if rest >= LANES:
                _copy(out, index * size, part, T.int32(pieces * PIECE), rest // LANES)
            if rest % LANES:
                first = size - rest % LANES
                store(out, index * size + first, load(part, first, rest % LANES), rest % LANES)
    return func.result()


def _copy(out: Buffer, start: int, part: Buffer, first: Expr, vectors: int) -> None:
    """So many vectors of a part from `first` on to where it lies in the output."""
    with T.serial(0, vectors) as v:
        at = T.bind(first + v * LANES)
        store(out, start + at, load(part, at))
