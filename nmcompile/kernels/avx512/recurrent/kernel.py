"""All steps of an LSTM or GRU, float32, in one call.

Work items are directions and groups of rows of the batch: none of them waits for another. An item
keeps its states beside each other, those that a step reads and those that it writes, and goes over
blocks of 16 hidden numbers: the products of all their gates, then the gates themselves.
"""

from __future__ import annotations

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
from nmcompile.kernels.avx512.recurrent.packing import blocks_of
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
    outputs = spec.directions * blocks_of(spec) * config.width
    linear = Linear((config.rows,), spec.hidden, outputs)
    if storage is None:
        return DenseEmitter(linear, Epilogue(), config)
    if isinstance(storage, Picking):
        return PickedEmitter(linear, Epilogue(), config, storage)
    return ListedEmitter(linear, Epilogue(), config, storage)


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
        kept = T.alloc_buffer((rows * whole,), align=64) if spec.kind == "lstm" else None
        self._resting = T.alloc_buffer((rows * spec.gates * LANES,), align=64)
        for buffer, pitch, given in zip(
            (states, kept), (spec.hidden, whole), (*self._first, None, None), strict=False
        ):
            if buffer is not None:
                self._begin(buffer, pitch, given, direction, row, rows)
        with T.serial(0, spec.steps) as step:
            time = self._time(step, direction)
            now = T.bind(step % 2 * rows)
            with T.serial(0, self._blocks) as turn:
                # To and fro: the weights that a step ends with are in a cache when the next begins.
                back = self._blocks - 1 - turn
                block = T.bind(T.if_then_else(step % 2 == 0, turn, back))
                self._block(direction, row, rows, time, now, block, states, kept)
        if spec.cells:
            assert kept is not None
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

    def _block(
        self, direction: Expr, row: Expr, rows: int, time: Expr, now: Expr, block: Expr,
        states: Buffer, kept: Buffer | None,
    ) -> None:  # fmt: skip
        """16 hidden numbers of a step: `now` is the first row of the states that it reads."""
        spec, gates = self._spec, self._spec.gates
        place = T.bind(direction * self._blocks + block)
        sums = Sums(rows, gates)
        for r in range(rows):
            for gate in range(gates):
                start = splat(0.0)
                if self._bias is not None and gate == gates - 1:
                    start = load(self._bias, place * LANES)
                sums.set(r, gate, start)
        self._product.multiply(sums, states, place, now)
        # The gates are long: emitted once for all rows.
        resting = self._resting
        for r in range(rows):
            for gate in range(gates):
                store(resting, (r * gates + gate) * LANES, sums.get(r, gate))
        active = self._active(block)
        with T.serial(0, rows) as r:
            at = (time * spec.batch + row + r) * spec.rows + direction * (gates * spec.hidden)
            given = [
                T.bind(load(self._x, at + gate * spec.hidden + block * LANES, active))
                for gate in range(gates)
            ]
            made = [T.bind(load(resting, (r * gates + gate) * LANES)) for gate in range(gates)]
            if kept is not None:
                cell = r * (self._blocks * LANES) + block * LANES
                added = [a + b for a, b in zip(given, made, strict=True)]
                state, value = cells.lstm(added, T.bind(load(kept, cell)))
                store(kept, cell, value)
            else:
                before = T.bind(load(states, (now + r) * spec.hidden + block * LANES, active))
                state = cells.gru(given, made, before)
            after = T.bind(rows - now + r)
            store(states, after * spec.hidden + block * LANES, state, active)
            store(self._out, self._place(time, row + r, direction, block), state, active)

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
