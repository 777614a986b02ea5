"""Products of two float32 matrices, for each pair of a batch.

Columns of b are copied once into vectors of 16, [vector][depth][16], which every block of rows then
reads; a tile of rows and vectors has its sums in registers. With few rows, whose columns lie side
by side, b is read where it lies: copying it would take longer than to multiply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, load, splat, store
from nmcompile.kernels.avx512.lines import Lines, pack_lines, start_of
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Product

ROWS = 6  # whose sums are in registers together
WIDTH = 4  # vectors beside them: 6 x 4 fill the registers
TILES = 8  # of rows, in a block


def in_place(spec: Product) -> bool:
    """Whether b is read where it lies."""
    return spec.rows <= ROWS and (spec.b.feature == 1 or spec.columns == 1)


def packed_floats(spec: Product) -> int:
    """Floats of the copy of b, for one pair."""
    return -(-spec.columns // LANES) * LANES * spec.depth


def emit_product(name: str, spec: Product) -> Any:
    """The TIR function (x0, [x1], [scratch], out): the tensors of `spec.operands`."""
    direct = in_place(spec)
    rows = min(ROWS, spec.rows)
    tiles = -(-spec.rows // rows)
    blocks = -(-tiles // TILES)
    with PrimFuncBuilder(name) as func:
        given = [func.tensor(f"x{i}", shape) for i, shape in enumerate(spec.operands)]
        scratch = None if direct else func.tensor("scratch", (spec.pairs * packed_floats(spec),))
        out = func.flat(func.tensor("out", spec.out_shape))
        given = [func.flat(tensor) for tensor in given]
        a, b = given[spec.a.operand], given[spec.b.operand]
        if scratch is not None:
            lines = Lines(spec.columns, spec.depth, spec.b.feature, spec.b.token)
            with T.parallel(0, spec.pairs) as pair:
                start = start_of(spec.lead, spec.b, pair)
                pack_lines(lines, b, start, scratch, T.bind(pair * packed_floats(spec)))
        with T.parallel(0, spec.pairs * blocks) as item:
            pair, block = T.bind(item // blocks), T.bind(item % blocks)
            own = start_of(spec.lead, spec.a, pair)
            # Of b: from one place of the depth, and from one vector of columns, to the next.
            if scratch is None:
                source, along, across = b, spec.b.token, LANES
                beginning = start_of(spec.lead, spec.b, pair)
            else:
                source, along, across = scratch, LANES, LANES * spec.depth
                beginning = T.bind(pair * packed_floats(spec))
            first_tile = T.bind(block * TILES)
            count = T.bind(T.min(TILES, tiles - first_tile))

            def columns(
                first: Expr, width: int, ragged: int, own: Expr = own, pair: Expr = pair,
                beginning: Expr = beginning, first_tile: Expr = first_tile, count: Expr = count,
            ) -> None:  # fmt: skip
                """All rows of the block times `width` vectors from `first` on."""

                def active(v: int) -> int:
                    return ragged if v == width - 1 else LANES

                with T.serial(0, count) as tile:
                    row = T.bind(T.min((first_tile + tile) * rows, spec.rows - rows))
                    sums = Sums(rows, width)
                    for r in range(rows):
                        for v in range(width):
                            sums.set(r, v, splat(0.0))
                    base = T.bind(own + row * spec.a.token)
                    with T.serial(0, spec.depth) as k:
                        at = T.bind(beginning + first * across + k * along)
                        vectors = [
                            T.bind(load(source, at + v * across, active(v) if direct else LANES))
                            for v in range(width)
                        ]
                        for r in range(rows):
                            scalar = a[base + r * spec.a.token + k * spec.a.feature]
                            factor = T.bind(splat(scalar))
                            for v in range(width):
                                sums.add(r, v, factor * vectors[v])
                    into = T.bind((pair * spec.rows + row) * spec.columns + first * LANES)
                    for r in range(rows):
                        for v in range(width):
                            where = into + r * spec.columns + v * LANES
                            store(out, where, sums.get(r, v), active(v))

            _by_columns(spec.columns, columns)
    return func.result()


def _by_columns(columns: int, do: Callable[[Expr, int, int], None]) -> None:
    """Call `do(first vector, vectors, lanes of the last one)` until all columns are done."""
    vectors = -(-columns // LANES)
    ragged = columns - (vectors - 1) * LANES
    full, rest = divmod(vectors, WIDTH)
    if not rest and ragged < LANES:
        full, rest = full - 1, WIDTH
    if full:
        with T.serial(0, full) as index:
            do(T.bind(index * WIDTH), WIDTH, LANES)
    if rest:
        do(T.int32(full * WIDTH), rest, ragged)
