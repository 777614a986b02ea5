"""Attention, float32: both products and the softmax between them, block by block.

The scores of a block of queries and a block of keys are computed, become weights, and are
multiplied by the values before the next block of keys is looked at, so that they never leave the
caches. Over the blocks a query keeps its largest score so far, the sum of its weights, and the sum
of the weighted values; the sums are scaled where a later block has a larger score (Dao et al.,
FlashAttention, arXiv 2205.14135, section 3.1).
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.attention.packing import pack
from nmcompile.kernels.avx512.attention.plan import Plan, Tile, vectors
from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    exp_below,
    extreme,
    first_lanes,
    load,
    over_lanes,
    splat,
    store,
)
from nmcompile.kernels.avx512.lines import start_of
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.avx512.writing import REALS, Store, Writing
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Attention

INFINITY = float("inf")
LOWEST = -3.4028234e38  # the lowest finite number


def emit_attention(name: str, spec: Attention, writing: Writing = REALS) -> Any:
    """The TIR function (x0, x1, ..., scratch, out): the tensors of `spec.operands`.

    What `writing` needs comes behind them. It writes vectors: the features of the result have to
    lie beside each other for any other than `REALS`.
    """
    plan = Plan(spec)
    heads = spec.heads
    with PrimFuncBuilder(name) as func:
        given = [func.tensor(f"x{i}", shape) for i, shape in enumerate(spec.operands)]
        write = writing.declare(func)
        scratch = func.tensor("scratch", (heads * plan.packed,))
        out = func.tensor("out", spec.out_shape, writing.dtype)
        given, out = [func.flat(tensor) for tensor in given], func.flat(out)
        with T.parallel(0, heads) as head:
            pack(plan, given, scratch, head)
        with T.parallel(0, heads * plan.query_blocks) as item:
            head, block = T.bind(item // plan.query_blocks), T.bind(item % plan.query_blocks)
            _QueryBlock(plan, given, scratch, out, head, block, write).emit()
    return func.result()


class _QueryBlock:
    """Emits what one work item does: a block of the queries of one head."""

    def __init__(
        self,
        plan: Plan,
        given: list[Buffer],
        packed: Buffer,
        out: Buffer,
        head: Expr,
        block: Expr,
        write: Store,
    ) -> None:
        spec, self._plan, self._spec = plan.spec, plan, plan.spec
        self._given, self._packed, self._out = given, packed, out
        self._head, self._write = head, write
        self._keys = T.bind(head * plan.packed)
        self._values = T.bind(head * plan.packed + plan.packed_keys)
        self._q, self._into = start_of(spec.lead, spec.q, head), start_of(spec.lead, spec.out, head)
        self._masks = [start_of(spec.lead, mask.where, head) for mask in spec.masks]
        self._first_tile = T.bind(block * plan.block_tiles)
        left = plan.row_tiles - self._first_tile
        self._tiles = T.bind(T.min(plan.block_tiles, left))
        rows = plan.block_tiles * plan.rows
        self._pitch = plan.block * LANES
        self._scores = T.alloc_buffer((rows * self._pitch,), align=64)
        self._sums = T.alloc_buffer((rows * plan.value_vectors * LANES,), align=64)
        self._totals = T.alloc_buffer((rows * LANES,), align=64)
        self._maxima = T.alloc_buffer((rows * LANES,), align=64)

    def emit(self) -> None:
        """All blocks of keys, then the output."""
        plan = self._plan
        if plan.full_blocks + bool(plan.last_keys) == 1:
            self._block(T.int32(0), plan.last_keys or plan.block * LANES, alone=True)
            return
        with T.serial(0, self._tiles * plan.rows) as row:
            store(self._maxima, row * LANES, splat(-INFINITY))
            store(self._totals, row * LANES, splat(0.0))
            with T.serial(0, plan.value_vectors) as v:
                store(self._sums, (row * plan.value_vectors + v) * LANES, splat(0.0))
        with T.serial(0, plan.full_blocks) as block:
            self._block(T.bind(block * plan.block), plan.block * LANES, alone=False)
        if plan.last_keys:
            first = T.int32(plan.full_blocks * plan.block)
            self._block(first, plan.last_keys, alone=False)
        with T.serial(0, self._tiles) as tile:
            self._finish(tile)

    def _first_row(self, tile: Expr) -> Expr:
        """The query of a tile's first row."""
        nominal = (self._first_tile + tile) * self._plan.rows
        return T.bind(T.min(nominal, self._spec.queries - self._plan.rows))

    def _block(self, first: Expr, keys: int, *, alone: bool) -> None:
        """A block of keys, whose vectors count from `first`; `alone`: there are no others."""
        for tile in self._plan.tiles(keys):
            with T.serial(0, self._tiles) as rows:
                self._multiply_keys(first, tile, rows)
        with T.serial(0, self._tiles) as rows:
            row = self._first_row(rows)
            factors = T.alloc_buffer((self._plan.rows * LANES,), scope="local")
            with T.serial(0, self._plan.rows) as r:
                self._weigh(first, keys, rows, row, r, None if alone else factors)
            start = 0
            for width in self._plan.chunks:
                self._multiply_values(first, keys, rows, start, width, None if alone else factors)
                start += width
            if alone:
                self._finish(rows)

    def _multiply_keys(self, first: Expr, tile: Tile, rows: Expr) -> None:
        """Scores of a tile of rows and a tile of keys."""
        spec, count, width = self._spec, self._plan.rows, tile.width
        query, row = self._given[spec.q.operand], self._first_row(rows)
        sums = Sums(count, width)
        for r in range(count):
            for v in range(width):
                sums.set(r, v, splat(0.0))
        keys = T.bind(self._keys + (first + tile.first) * (spec.size * LANES))
        base = T.bind(self._q + row * spec.q.token)
        with T.serial(0, spec.size) as feature:
            loaded = [
                T.bind(load(self._packed, keys + (v * spec.size + feature) * LANES))
                for v in range(width)
            ]
            for r in range(count):
                at = base + r * spec.q.token + feature * spec.q.feature
                scalar = T.bind(splat(query[at]))
                for v in range(width):
                    sums.add(r, v, scalar * loaded[v])
        for r in range(count):
            for v in range(width):
                at = (rows * count + r) * self._pitch + (tile.first + v) * LANES
                store(self._scores, at, sums.get(r, v))

    def _weigh(
        self, first: Expr, keys: int, rows: Expr, row: Expr, r: Expr, factors: Buffer | None
    ) -> None:
        """Turn the scores of one row into weights, and add them up."""
        place = T.bind(rows * self._plan.rows + r)
        scores = []
        for v in range(vectors(keys)):
            active = min(LANES, keys - v * LANES)
            score = T.bind(load(self._scores, place * self._pitch + v * LANES))
            score = self._masked(score, row + r, (first + v) * LANES, active)
            if active < LANES:
                score = T.bind(T.Select(first_lanes(active), score, splat(-INFINITY)))
            scores.append(score)
        top: Expr = scores[0]
        for score in scores[1:]:
            top = T.bind(extreme("max", score, top))
        # A NaN is left out by all of these but the first; it stays in its weight in any case.
        top = over_lanes(extreme("max", top, splat(-INFINITY)), lambda a, b: extreme("max", a, b))
        before: Expr = None
        if factors is not None:
            before = T.bind(load(self._maxima, place * LANES))
            top = T.bind(extreme("max", top, before))
        # Nothing is taken from -inf where all scores are.
        base = T.bind(T.Select(top < splat(LOWEST), splat(0.0), top))
        total: Expr = splat(0.0)
        for v, score in enumerate(scores):
            weight = T.bind(exp_below(T.bind(score + base * splat(-1.0))))
            store(self._scores, place * self._pitch + v * LANES, weight)
            total = T.bind(total + weight)
        if factors is not None:
            factor = T.bind(exp_below(T.bind(before + base * splat(-1.0))))
            store(factors, r * LANES, factor)
            store(self._maxima, place * LANES, top)
            total = T.bind(load(self._totals, place * LANES) * factor + total)
        store(self._totals, place * LANES, total)

    def _masked(self, score: Expr, query: Expr, key: Expr, active: int) -> Expr:
        for mask, start in zip(self._spec.masks, self._masks, strict=True):
            where = mask.where
            buffer = self._given[where.operand]
            at = start + query * where.token + key * where.feature
            value = T.bind(load(buffer, at, active) if where.feature else splat(buffer[at]))
            if mask.hides:
                score = T.bind(T.Select(value < splat(0.0), value, score))
            else:
                score = T.bind(score + value)
        return score

    def _multiply_values(
        self, first: Expr, keys: int, rows: Expr, start: int, width: int, factors: Buffer | None
    ) -> None:
        """Add the weighted values: `width` vectors of features from `start` on."""
        plan, count = self._plan, self._plan.rows
        sums, all_vectors = Sums(count, width), plan.value_vectors

        def resting(r: int, v: int) -> Expr:
            return ((rows * count + r) * all_vectors + start + v) * LANES

        for r in range(count):
            for v in range(width):
                value: Expr = splat(0.0)
                if factors is not None:
                    value = load(self._sums, resting(r, v)) * load(factors, r * LANES)
                sums.set(r, v, value)
        values = T.bind(self._values + (first * (LANES * all_vectors) + start) * LANES)
        weights = T.bind(rows * (count * self._pitch))
        with T.serial(0, keys) as key:
            loaded = [
                T.bind(load(self._packed, values + (key * all_vectors + v) * LANES))
                for v in range(width)
            ]
            for r in range(count):
                scalar = T.bind(splat(self._scores[weights + r * self._pitch + key]))
                for v in range(width):
                    sums.add(r, v, scalar * loaded[v])
        for r in range(count):
            for v in range(width):
                store(self._sums, resting(r, v), sums.get(r, v))

    def _finish(self, rows: Expr) -> None:
        """Divide by the sum of the weights, and write what no tile before has written."""
        plan, spec, row = self._plan, self._spec, self._first_row(rows)
        written = T.bind((self._first_tile + rows) * plan.rows - row)
        with T.serial(0, plan.rows - written) as index:
            r = T.bind(written + index)
            place = T.bind(rows * plan.rows + r)
            total = over_lanes(load(self._totals, place * LANES), lambda a, b: a + b)
            inverse = T.bind(splat(1.0) / total)
            if spec.zero_hidden:
                inverse = T.bind(T.Select(total <= splat(0.0), splat(0.0), inverse))
            into = T.bind(self._into + (row + r) * spec.out.token)
            beside = spec.out.feature == 1
            for v in range(plan.value_vectors):
                active = min(LANES, spec.value_size - v * LANES)
                at = T.bind((place * plan.value_vectors + v) * LANES)
                result = T.bind(load(self._sums, at) * inverse)
                if beside:
                    self._write(self._out, into + v * LANES, result, active)
                    continue
                store(self._sums, at, result)
                with T.serial(0, active) as index:
                    feature = T.bind(v * LANES + index)
                    T.buffer_store(
                        self._out, self._sums[at + index], [into + feature * spec.out.feature]
                    )
