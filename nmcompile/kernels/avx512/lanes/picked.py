"""Products with N:M weights: every lane picks its input out of a few that lie in a register.

Inputs are taken 16 at a time. Of each M of them every output keeps N weights, so that 16 inputs
have the same number of slots for all outputs, and a slot is one vector of weights and one of
positions. Where M is 2 or 4 a position has 2 bits and picks within the four inputs that the slot is
for, spread over all quarters of a register; else 4 bits, among all 16. Positions of several slots
share a word in each lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    lanes,
    load,
    load_between,
    splat,
)
from nmcompile.kernels.avx512.lanes.config import QUARTER, LanesConfig, Picking
from nmcompile.kernels.avx512.lanes.product import ProductEmitter
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue, Linear


def pack_picked(
    weight: npt.NDArray[np.float32], picking: Picking, config: LanesConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Values and words of positions of an (out, in) weight, zero-padded to whole panels and words.

    Values: (panels, words, slots of a word, width); words: (panels, words, width).
    """
    outputs, inputs = weight.shape
    span = LANES * picking.units
    panels, words = -(-outputs // config.width), -(-inputs // span)
    padded = np.zeros((panels * config.width, words * span), np.float32)
    padded[:outputs, :inputs] = weight
    groups = padded.reshape(len(padded), -1, picking.m)
    # The first n of each group that are not zero, zeros among them where fewer are left.
    kept = np.sort(np.argsort(groups == 0, axis=2, kind="stable")[:, :, : picking.n], axis=2)
    values = np.take_along_axis(groups, kept, axis=2)
    first = np.arange(groups.shape[1])[:, None] * picking.m
    places = ((kept + first) % picking.reach).reshape(len(padded), words, -1).astype(np.uint32)
    shifts = (np.arange(places.shape[2]) * picking.bits).astype(np.uint32)
    packed = np.bitwise_or.reduce(places << shifts, axis=2)

    def by_panel(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(outputs, rest) to (panels, rest, width)."""
        split = array.reshape(panels, config.width, -1)
        return np.ascontiguousarray(split.transpose(0, 2, 1)).reshape(-1)

    return by_panel(values), by_panel(packed).view(np.int32)


def emit_picked(
    name: str, linear: Linear, epilogue: Epilogue, config: LanesConfig, picking: Picking
) -> Any:
    """The TIR function (x, values, words, [bias], [residual], out)."""
    return PickedEmitter(linear, epilogue, config, picking).emit(name)


class PickedEmitter(ProductEmitter):
    """Slots of weights with their positions."""

    def __init__(
        self, linear: Linear, epilogue: Epilogue, config: LanesConfig, picking: Picking
    ) -> None:
        super().__init__(linear, epilogue, config)
        self._picking = picking
        self._words_of_panel = -(-linear.in_features // (LANES * picking.units))
        self._slots = picking.slots * picking.units

    def declare(self, func: PrimFuncBuilder) -> None:
        """See `ProductEmitter`."""
        words = self.panels * self._words_of_panel * self.config.width
        self._values = func.tensor("values", (words * self._slots,))
        self._words = func.tensor("words", (words,), "int32")

    def multiply(self, sums: Sums, x: Buffer, panel: Expr, row: Expr) -> None:
        """See `ProductEmitter`."""
        inputs, span = self.linear.in_features, LANES * self._picking.units
        full, rest = divmod(inputs, span)

        def word(index: Expr, real: int) -> None:
            starts = [T.bind((row + r) * inputs + index * span) for r in range(sums.rows)]
            self._word(sums, x, T.bind(panel * self._words_of_panel + index), starts, real)

        if full:
            with T.serial(0, full) as index:
                word(index, span)
        if rest:
            word(T.int32(full), rest)

    def _word(self, sums: Sums, x: Buffer, index: Expr, starts: list[Expr], real: int) -> None:
        """The slots of one word of positions; of its inputs the first `real` are there."""
        picking, width = self._picking, self.config.width
        value0, word0 = T.bind(index * (self._slots * width)), T.bind(index * width)
        words = [T.bind(self._words[lanes(word0 + v * LANES)]) for v in range(sums.vectors)]
        per_reach = picking.slots * picking.reach // LANES
        for part in range(self._slots // per_reach):
            there = real - part * picking.reach
            if there <= 0:
                return
            given = [self._inputs(x, start + part * picking.reach, there) for start in starts]
            for slot in range(part * per_reach, (part + 1) * per_reach):
                for v in range(sums.vectors):
                    places = words[v]
                    if slot:
                        places = T.bind(places >> splat(T.int32(picking.bits * slot)))
                    at = value0 + (slot * sums.vectors + v) * LANES
                    weight = T.bind(load(self._values, at))
                    for r, source in enumerate(given):
                        sums.add(r, v, weight * self._pick(source, places))

    def _inputs(self, x: Buffer, start: Expr, there: int) -> Expr:
        """What lanes pick from."""
        if self._picking.reach == LANES:
            return T.bind(load(x, start, min(there, LANES)))
        four = T.bind(load_between(x, start, 0, there, QUARTER, 0.0))
        return T.bind(T.Shuffle([four] * (LANES // QUARTER), list(range(LANES))))

    def _pick(self, source: Expr, places: Expr) -> Expr:
        """The instructions vpermilps and vpermps: they look at the low bits of each place."""
        if self._picking.reach == LANES:
            name = "llvm.x86.avx512.permvar.sf.512"
        else:
            name = "llvm.x86.avx512.vpermilvar.ps.512"
        return T.bind(T.call_llvm_pure_intrin("float32x16", name, source, places))
