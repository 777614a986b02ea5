"""The weights of a Winograd convolution: kept as windows in the artifact, transformed at load.

Transformed weights would make the file two to four times as large, and lose the zeros of patterns
that Winograd computes with all weights (2:4). Those are kept as non-zeros and a bit per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    lanes,
    load,
    splat,
    store,
)
from nmcompile.kernels.avx512.panel.config import PackedSizes
from nmcompile.kernels.avx512.panel.packing import pack_conv
from nmcompile.kernels.avx512.winograd.config import Tiling
from nmcompile.kernels.avx512.winograd.transforms import transform_window
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Array, Prepare

SQUEEZE_BELOW = 0.9  # density up to which bits and non-zeros are smaller than all weights
BYTE = 8


def keep_windows(
    name: str,
    weight: npt.NDArray[np.float32],
    tiling: Tiling,
    channels: Sequence[int] | None = None,
) -> tuple[dict[str, Array], Prepare, PackedSizes]:
    """What the artifact keeps of an OIHW weight, and how it becomes what the kernel reads.

    `channels` as in `pack_conv`.

    Returns:
        The arrays, "values" and those that the kernel takes as they are; the preparation of
        "values"; and the lengths of the packed windows and their lists.
    """
    packed = pack_conv(weight, tiling.conv, tiling.windows, channels)
    size = packed.values.size
    transformed = tiling.transformed(size)
    density = np.count_nonzero(weight) / weight.size
    if not tiling.config.dense or density >= SQUEEZE_BELOW:
        args = (tiling.of_weights, size)
        prepare = Prepare(name, emit_transform, args, ("values",), transformed)
        return packed.arrays, prepare, packed.sizes
    values, masks, starts = squeeze(
        packed.values.reshape(-1, tiling.conv.taps, tiling.config.outputs)
    )
    arrays = {"values": values, "masks": masks, "starts": starts}
    lengths = (values.size, masks.size, starts.size)
    of_masks = (tiling.of_weights, lengths)
    prepare = Prepare(name, emit_expand, of_masks, tuple(arrays), transformed)
    return arrays, prepare, packed.sizes


def squeeze(
    windows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], Array, npt.NDArray[np.int32]]:
    """Windows of shape (entry, tap, outputs) without their zeros.

    Returns:
        The non-zeros in order, and one vector of zeros behind them; a bit for each weight, in
        words for 16 outputs, or bytes where there are no more than 8: (entry, tap, words); the
        number of non-zeros before each entry.
    """
    kept = windows != 0
    dtype = np.dtype(mask_dtype(windows.shape[2]))
    padded = np.pad(kept, ((0, 0), (0, 0), (0, -windows.shape[2] % (BYTE * dtype.itemsize))))
    masks = np.packbits(padded, axis=-1, bitorder="little").view(dtype)
    counts = kept.reshape(len(windows), -1).sum(axis=1)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    values = np.concatenate([windows[kept], np.zeros(LANES, np.float32)])
    return values, masks.reshape(-1), starts


def mask_dtype(outputs: int) -> str:
    """Type of the words that hold the bits of one tap."""
    return "uint8" if outputs <= BYTE else "uint16"


def emit_transform(name: str, tiling: Tiling, size: int) -> Any:
    """The TIR function (windows, transformed): G g G' of all windows.

    windows: (entry, tap, outputs), `size` floats.
    transformed: (position, entry, phase, outputs).
    """
    outputs, count = tiling.config.outputs, tiling.conv.taps
    entries = size // (count * outputs)
    with PrimFuncBuilder(name) as func:
        windows = func.tensor("windows", (size,))
        transformed = func.tensor("transformed", (tiling.transformed(size),))
        with T.parallel(0, entries) as entry:
            for first in range(0, outputs, LANES):
                active = min(LANES, outputs - first)
                base = T.bind(entry * (count * outputs) + first)
                taps = [T.bind(load(windows, base + t * outputs, active)) for t in range(count)]
                _store_transformed(tiling, taps, transformed, entries, entry, first)
    return func.result()


def emit_expand(name: str, tiling: Tiling, lengths: tuple[int, int, int]) -> Any:
    """The TIR function (values, masks, starts, transformed): as above, from `squeeze`d windows."""
    outputs, count = tiling.config.outputs, tiling.conv.taps
    chunks = -(-outputs // LANES)
    entries = lengths[2]
    with PrimFuncBuilder(name) as func:
        values = func.tensor("values", (lengths[0],))
        masks = func.tensor("masks", (lengths[1],), mask_dtype(outputs))
        starts = func.tensor("starts", (entries,), "int32")
        size = entries * count * outputs
        transformed = func.tensor("transformed", (tiling.transformed(size),))
        with T.parallel(0, entries) as entry:
            at: Expr = T.bind(starts[entry])
            taps: list[list[Expr]] = []
            for tap in range(count):
                row = []
                for chunk in range(chunks):
                    bits = T.bind(T.Cast("int32", masks[(entry * count + tap) * chunks + chunk]))
                    row.append(_expand(values, at, bits))
                    at = T.bind(at + tirx.popcount(bits))
                taps.append(row)
            for chunk in range(chunks):
                column = [row[chunk] for row in taps]
                _store_transformed(tiling, column, transformed, entries, entry, chunk * LANES)
    return func.result()


def _expand(values: Buffer, at: Expr, bits: Expr) -> Expr:
    """Consecutive values from `at` on, one for each lane whose bit is set; zeros elsewhere."""
    powers = T.bind(splat(T.int32(1)) << lanes(0))
    mask = (splat(bits) & powers) != splat(T.int32(0))
    name = "llvm.x86.avx512.mask.expand"
    return T.bind(T.call_llvm_intrin("float32x16", name, load(values, at), splat(0.0), mask))


def _store_transformed(
    tiling: Tiling,
    taps: Sequence[Expr],
    transformed: Buffer,
    entries: int,
    entry: Expr,
    first: int,
) -> None:
    """Transform the phases of up to 16 windows, one per lane; store them from output `first` on."""
    outputs, size, stride = tiling.config.outputs, tiling.conv.kernel[0], tiling.stride
    reach = range(tiling.window)
    for row in range(stride):
        for column in range(stride):
            # Phases that begin later can have a tap less: its place holds a zero.
            windows = [
                [
                    taps[y * size + x] if max(y, x) < size else None
                    for x in (column + stride * i for i in reach)
                ]
                for y in (row + stride * i for i in reach)
            ]
            values = [v for line in transform_window(windows, tiling.span) for v in line]
            for position, value in enumerate(values):
                matrix = (position * entries + entry) * tiling.phases + row * stride + column
                at = matrix * outputs + first
                store(transformed, at, value, min(LANES, outputs - first))
