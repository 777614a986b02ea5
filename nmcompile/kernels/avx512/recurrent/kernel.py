"""All steps of an LSTM or GRU, float32, in one call.

Work items are directions and groups of rows of the batch: none of them waits for another. An item
keeps its states beside each other, those that a step reads and those that it writes, and goes over
blocks of 16 hidden numbers: the products of all their gates, then the gates themselves. A GRU that
resets its state first goes over them twice: its last gate is a product with what was reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, either, load, splat, store
from nmcompile.kernels.avx512.lanes.config import LanesConfig, Picking
from nmcompile.kernels.avx512.lanes.dense import DenseEmitter
from nmcompile.kernels.avx512.lanes.listed import ListedEmitter
from nmcompile.kernels.avx512.lanes.picked import PickedEmitter
from nmcompile.kernels.avx512.lanes.product import ProductEmitter
from nmcompile.kernels.avx512.lanes.tiling import steps_of
from nmcompile.kernels.avx512.recurrent import cells
from nmcompile.kernels.avx512.recurrent.packing import (
    PAIR,
    blocks_of,
    pairs_of,
    panels_of,
    vectors_of,
)
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.recurrence import Recurrent
from nmcompile.kernels.spec import Epilogue, Linear

Storage = Picking | int | None
"""How weights are stored: as slots, as lists of blocks of so many outputs, or all of them."""


def emit_recurrent(
    name: str, spec: Recurrent, bias: bool, config: LanesConfig, storage: Storage
) -> Any:
    """The TIR function (x, [state, [cell]], arrays of weights, [bias], out)."""
    return _Emitter(spec, config, storage).emit(name, bias)


def _product(spec: Recurrent, config: LanesConfig, storage: Storage) -> ProductEmitter:
    """Of rows of states with the weight of all directions, by blocks."""
    outputs = spec.directions * panels_of(spec) * config.width
    linear = Linear((config.rows,), spec.hidden, outputs)
    if storage is None:
        return DenseEmitter(linear, Epilogue(), config)
    if isinstance(storage, Picking):
        return PickedEmitter(linear, Epilogue(), config, storage)
    return ListedEmitter(linear, Epilogue(), config, storage)


@dataclass(frozen=True)
class _Line:
    """What a work item computes in a step: rows of the batch from `row` on, in one direction.

    time: of the step that is read and written. now: the first row of the states that it reads.
    """

    direction: Expr
    row: Expr
    rows: int
    time: Expr
    now: Expr


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(self, spec: Recurrent, config: LanesConfig, storage: Storage) -> None:
        self._spec, self._config = spec, config
        self._product = _product(spec, config, storage)
        self._blocks = blocks_of(spec)

    def emit(self, name: str, bias: bool) -> Any:
        """The function."""
        spec, blocks = self._spec, self._blocks
        groups = steps_of(spec.batch, self._config.rows)
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", spec.in_shape)
            first = [
                func.tensor(each, spec.state_shape)
                for each in ("state", "cell")[: 1 + (spec.kind == "lstm")]
                if spec.initial
            ]
            self._product.declare(func)
            bias_size = spec.directions * blocks * LANES
            self._bias = func.tensor("bias", (bias_size,)) if bias else None
            out = func.tensor("out", spec.out_shape)
            self._x, self._out = func.flat(x), func.flat(out)
            self._first = [func.flat(buffer) for buffer in first]
            with T.parallel(0, spec.directions * len(groups)) as item:
                direction, group = T.bind(item // len(groups)), T.bind(item % len(groups))
                row = T.bind(group * self._config.rows)
                either(
                    group == len(groups) - 1,
                    groups[-1] != groups[0],
                    lambda final: self._rows(direction, row, groups[-1] if final else groups[0]),
                )
        return func.result()

    def _rows(self, direction: Expr, row: Expr, rows: int) -> None:
        """All steps of some rows of the batch in one direction."""
        spec, whole = self._spec, self._blocks * LANES
        # States of two steps, without gaps, as products read them; the last vector may go beyond.
        states = T.alloc_buffer((2 * rows * spec.hidden + LANES,), align=64)
        # Cells of an LSTM, or gates z of a step.
        kept = T.alloc_buffer((rows * whole,), align=64)
        self._resting = T.alloc_buffer((rows * vectors_of(spec) * LANES,), align=64)
        given = (*self._first, None, None)
        self._begin(states, spec.hidden, given[0], direction, row, rows)
        if spec.kind == "lstm":
            self._begin(kept, whole, given[1], direction, row, rows)
        if spec.reset_first:
            self._reset = T.alloc_buffer((rows * spec.hidden,), align=64)
        with T.serial(0, spec.steps) as step:
            line = _Line(direction, row, rows, self._time(step, direction), T.bind(step % 2 * rows))
            with T.serial(0, self._blocks) as turn:
                # To and fro: the weights that a step ends with are in a cache when the next begins.
                back = self._blocks - 1 - turn
                block = T.bind(T.if_then_else(step % 2 == 0, turn, back))
                if spec.reset_first:
                    self._reset_block(line, block, states, kept)
                else:
                    self._block(line, block, states, kept)
            if spec.reset_first:
                with T.serial(0, pairs_of(spec)) as pair:
                    self._renew(line, pair, states, kept)
        if spec.cells:
            with T.serial(0, rows) as r, T.serial(0, self._blocks) as block:
                active = self._active(block)
                value = load(kept, r * whole + block * LANES)
                store(self._out, self._place(T.int32(spec.steps), row + r, direction, block),
                      value, active)  # fmt: skip

    def _begin(
        self, buffer: Buffer, pitch: int, given: Buffer | None, direction: Expr, row: Expr,
        rows: int,
    ) -> None:  # fmt: skip
        """States or cells before the first step; `pitch`: from one row to the next."""
        spec = self._spec
        with T.serial(0, rows) as r, T.serial(0, self._blocks) as block:
            value = splat(0.0)
            if given is not None:
                start = (direction * spec.batch + row + r) * spec.hidden + block * LANES
                value = T.bind(load(given, start, self._active(block)))
            store(buffer, r * pitch + block * LANES, value)

    def _multiply(
        self, line: _Line, panel: Expr, read: Buffer, first: Expr, bias: Expr = None
    ) -> None:
        """Sums of a panel for all rows, from row `first` of what is read on, to memory."""
        vectors, resting = vectors_of(self._spec), self._resting
        sums = Sums(line.rows, vectors)
        for r in range(line.rows):
            for v in range(vectors):
                last = bias is not None and v == vectors - 1
                sums.set(r, v, load(self._bias, bias) if last else splat(0.0))
        place = T.bind(line.direction * panels_of(self._spec) + panel)
        self._product.multiply(sums, read, place, first)
        # The gates are long: emitted once for all rows.
        for r in range(line.rows):
            for v in range(vectors):
                store(resting, (r * vectors + v) * LANES, sums.get(r, v))

    def _made(self, r: Expr) -> list[Expr]:
        """The sums of one row."""
        vectors = vectors_of(self._spec)
        return [T.bind(load(self._resting, (r * vectors + v) * LANES)) for v in range(vectors)]

    def _given(self, line: _Line, r: Expr, gates: range, block: Expr) -> list[Expr]:
        """What the inputs add to gates of a block."""
        spec, active = self._spec, self._active(block)
        at = (line.time * spec.batch + line.row + r) * spec.rows
        own = T.bind(at + line.direction * (spec.gates * spec.hidden) + block * LANES)
        return [T.bind(load(self._x, own + gate * spec.hidden, active)) for gate in gates]

    def _finish(self, line: _Line, r: Expr, block: Expr, states: Buffer, state: Expr) -> None:
        """Put a new state where the next step reads it, and into the output."""
        active, after = self._active(block), T.bind(line.rows - line.now + r)
        store(states, after * self._spec.hidden + block * LANES, state, active)
        place = self._place(line.time, line.row + r, line.direction, block)
        store(self._out, place, state, active)

    def _state(self, line: _Line, r: Expr, block: Expr, states: Buffer) -> Expr:
        """The state of the step before."""
        at = (line.now + r) * self._spec.hidden + block * LANES
        return T.bind(load(states, at, self._active(block)))

    def _block(self, line: _Line, block: Expr, states: Buffer, kept: Buffer) -> None:
        """16 hidden numbers of a step."""
        bias = None
        if self._bias is not None:
            bias = T.bind((line.direction * self._blocks + block) * LANES)
        self._multiply(line, block, states, line.now, bias)
        with T.serial(0, line.rows) as r:
            given = self._given(line, r, range(self._spec.gates), block)
            made = self._made(r)
            if self._spec.kind == "lstm":
                cell = T.bind((r * self._blocks + block) * LANES)
                added = [a + b for a, b in zip(given, made, strict=True)]
                state, value = cells.lstm(added, T.bind(load(kept, cell)))
                store(kept, cell, value)
            else:
                state = cells.gru(given, made, self._state(line, r, block, states))
            self._finish(line, r, block, states, state)

    def _reset_block(self, line: _Line, block: Expr, states: Buffer, kept: Buffer) -> None:
        """Gates z and r of 16 hidden numbers, and the state that r leaves of them."""
        self._multiply(line, block, states, line.now)
        with T.serial(0, line.rows) as r:
            given = self._given(line, r, range(PAIR), block)
            sums = [a + b for a, b in zip(given, self._made(r), strict=True)]
            store(kept, (r * self._blocks + block) * LANES, cells.sigmoid(sums[0]))
            left = cells.sigmoid(sums[1]) * self._state(line, r, block, states)
            at = r * self._spec.hidden + block * LANES
            store(self._reset, at, left, self._active(block))

    def _renew(self, line: _Line, pair: Expr, states: Buffer, kept: Buffer) -> None:
        """New states of two blocks of hidden numbers, out of those that were reset."""
        self._multiply(line, self._blocks + pair, self._reset, T.int32(0))

        def renew(block: Expr, v: int) -> None:
            with T.serial(0, line.rows) as r:
                (given,) = self._given(line, r, range(PAIR, PAIR + 1), block)
                update = T.bind(load(kept, (r * self._blocks + block) * LANES))
                new = cells.tangent(given + self._made(r)[v])
                before = self._state(line, r, block, states)
                self._finish(line, r, block, states, T.bind(new + update * (before - new)))

        for v in range(PAIR):
            block = T.bind(pair * PAIR + v)
            if self._blocks % PAIR and v:
                with T.If(block < self._blocks), T.Then():
                    renew(block, v)
            else:
                renew(block, v)

    def _active(self, block: Expr) -> Expr:
        """Hidden numbers of a block: 16, but for the last."""
        if self._spec.hidden % LANES == 0:
            return LANES
        return T.bind(T.min(LANES, self._spec.hidden - block * LANES))

    def _time(self, step: Expr, direction: Expr) -> Expr:
        """Which step of the input is the next one of a direction."""
        last = self._spec.steps - 1
        if self._spec.direction == "bidirectional":
            return T.bind(T.if_then_else(direction == 0, step, last - step))
        return T.bind(step if self._spec.direction == "forward" else last - step)

    def _place(self, time: Expr, row: Expr, direction: Expr, block: Expr) -> Expr:
        """Where a block of hidden numbers goes in the output."""
        spec = self._spec
        line = (time * spec.batch + row) * spec.directions + direction
        return T.bind(line * spec.hidden + block * LANES)
