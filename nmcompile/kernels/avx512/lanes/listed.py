"""Products with 1xN weights: the outputs of a block are lanes, and its list says which inputs.

Blocks of fewer than 16 outputs share a vector, each with a list of its own: the lists of a vector
are filled up to the longest one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, lanes, load, prefetch, splat
from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.lanes.product import ProductEmitter
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue, Linear
from nmcompile.sparsity import pack_rows

AHEAD = 1024  # floats; without, several rows took up to 1.3 times as long


def pack_listed(
    weight: npt.NDArray[np.float32], outputs: int, config: LanesConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """Values, indices and starts of an (out, in) weight in blocks of `outputs`.

    values: (entries, width). indices: (entries, blocks of a panel). starts: the first entry of each
    panel, and the end.
    """
    parts = config.width // outputs
    rows = pack_rows(weight, outputs, 1)
    panels = -(-rows.counts.size // parts)
    counts = np.zeros(panels * parts, np.int64)
    counts[: rows.counts.size] = rows.counts
    lengths = counts.reshape(panels, parts).max(axis=1)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    block = np.repeat(np.arange(counts.size), counts)
    position = np.arange(block.size) - np.repeat(np.cumsum(counts) - counts, counts)
    entry = starts[block // parts] + position
    # A kernel argument may not be empty: an all-zero layer still gets one element.
    values = np.zeros((max(1, starts[-1]), parts, outputs), np.float32)
    indices = np.zeros((len(values), parts), np.uint16)
    values[entry, block % parts] = rows.values
    indices[entry, block % parts] = rows.indices
    return values.reshape(-1), indices.reshape(-1), starts.astype(np.int32)


def emit_listed(
    name: str, linear: Linear, epilogue: Epilogue, config: LanesConfig, outputs: int
) -> Any:
    """The TIR function (x, values, indices, starts, [bias], [residual], out)."""
    return ListedEmitter(linear, epilogue, config, outputs).emit(name)


class ListedEmitter(ProductEmitter):
    """Lists of inputs, one for all vectors of a panel, or one or more for each."""

    def __init__(
        self, linear: Linear, epilogue: Epilogue, config: LanesConfig, outputs: int
    ) -> None:
        super().__init__(linear, epilogue, config)
        self._outputs, self._parts = outputs, config.width // outputs

    def declare(self, func: PrimFuncBuilder) -> None:
        """See `ProductEmitter`."""
        self._values = func.list_of("values", "float32")
        self._indices = func.list_of("indices", "uint16")
        self._starts = func.tensor("starts", (self.panels + 1,), "int32")

    def multiply(self, sums: Sums, x: Buffer, panel: Expr, row: Expr) -> None:
        """See `ProductEmitter`."""
        inputs, width = self.linear.in_features, self.config.width
        begin = T.bind(self._starts[panel])
        with T.serial(0, self._starts[panel + 1] - begin) as step:
            entry = T.bind(begin + step)
            value0 = T.bind(entry * width)
            prefetch(self._values, value0 + AHEAD, width)
            places = [
                T.bind(T.Cast("int32", self._indices[entry * self._parts + part]))
                for part in range(self._parts)
            ]
            weights = [T.bind(load(self._values, value0 + v * LANES)) for v in range(sums.vectors)]
            for r in range(sums.rows):
                scalars = [x[(row + r) * inputs + place] for place in places]
                each = -(-len(scalars) // sums.vectors)
                given = [
                    self._spread(scalars[part : part + each])
                    for part in range(0, len(scalars), each)
                ]
                for v, weight in enumerate(weights):
                    sums.add(r, v, given[v * len(given) // sums.vectors] * weight)

    def _spread(self, scalars: list[Expr]) -> Expr:
        """Each input in the lanes of its block."""
        spread = T.bind(splat(scalars[-1]))
        for part in range(len(scalars) - 2, -1, -1):
            mine = lanes(0) < splat(T.int32((part + 1) * self._outputs))
            spread = T.bind(T.Select(mine, splat(scalars[part]), spread))
        return spread
