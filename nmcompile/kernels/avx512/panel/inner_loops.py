"""The inner loops: panel rows times weights, for each kind of list."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, narrow, prefetch, splat
from nmcompile.kernels.avx512.panel.accumulators import Accumulators
from nmcompile.kernels.avx512.panel.config import PanelConfig, entries_of, words_of
from nmcompile.kernels.spec import Conv2d

OFFSETS_PER_WORD = 4  # 16-bit row offsets of private lists packed in one 64-bit word
QUARTER = 4  # floats of 128 bits
MAX_UNROLL = 9  # panel rows of one shared entry that are written out: a 3x3 kernel

# Weights are prefetched this many floats ahead: they come from memory once per call, and the
# hardware's prefetchers stop at page borders.
AHEAD = 1024


@dataclass(frozen=True)
class Weights:
    """The packed arrays of one convolution; see `packing` for their order.

    `origin` is where its values begin, where several matrices share the lists.
    """

    conv: Conv2d
    config: PanelConfig
    values: Buffer
    indices: Buffer | None
    starts: Buffer | None
    origin: Expr = 0


def multiply(
    weights: Weights,
    sums: Accumulators,
    panel: Buffer,
    which: Expr,
    part: Expr,
    channels: Expr,
    origin: Expr = 0,
) -> None:
    """Add the products of one list in one block of channels.

    Args:
        weights: the packed arrays.
        sums: of the list's outputs.
        panel: the rows of the block.
        which: number of the list over groups, blocks and chunks.
        part: which `outputs` of a list's `list_outputs`.
        channels: input channels in the block.
        origin: where in `panel` its first row begins; for shared lists and dense weights.
    """
    if weights.config.lists == "grouped":
        _grouped(weights, sums, panel, which)
    elif weights.config.lists == "private":
        _private(weights, sums, panel, which)
    else:
        _shared(weights, sums, panel, which, part, channels, origin)


def _shared(
    weights: Weights,
    sums: Accumulators,
    panel: Buffer,
    which: Expr,
    part: Expr,
    channels: Expr,
    origin: Expr,
) -> None:
    """`outputs` channels read the same rows: each row feeds outputs x vectors FMAs."""
    config, values = weights.config, weights.values
    if weights.starts is None or weights.indices is None:
        # Dense: `which` counts channels, not lists, up to here.
        before, count = which, channels
    else:
        before = T.bind(weights.starts[which])
        count = T.bind(weights.starts[which + 1] - before)
    per_entry = config.run * sums.outputs
    value0 = T.bind(
        before * (config.run * config.list_outputs) + part * (count * per_entry) + weights.origin
    )
    with T.serial(0, count) as entry:
        channel = entry if weights.indices is None else weights.indices[before + entry]
        row0 = T.bind(T.Cast("int32", channel) * (config.run * sums.stride) + origin)
        value1 = T.bind(value0 + entry * per_entry)
        if config.run <= MAX_UNROLL:
            prefetch(values, value1 + AHEAD, per_entry)
            for k in range(config.run):
                _shared_row(values, sums, panel, row0 + k * sums.stride, value1 + k * sums.outputs)
        else:
            with T.serial(0, config.run) as k:
                value = T.bind(value1 + k * sums.outputs)
                prefetch(values, value + AHEAD, sums.outputs)
                _shared_row(values, sums, panel, row0 + k * sums.stride, value)


def _shared_row(values: Buffer, sums: Accumulators, panel: Buffer, row: Expr, value: Expr) -> None:
    """One panel row times `outputs` weights."""
    xs = [T.bind(panel[T.ramp(row + t * LANES, 1, width)]) for t, width in enumerate(sums.widths)]
    for j in range(sums.outputs):
        weights = {w: T.bind(T.broadcast(values[value + j], w)) for w in set(sums.widths)}
        for t, (x, width) in enumerate(zip(xs, sums.widths, strict=True)):
            sums.set(j, t, sums.get(j, t) + weights[width] * x)
    if sums.extra:
        # Pixels that would waste most of a vector: here the weights are the vector.
        column = T.bind(load(values, value, sums.outputs))
        for e in range(sums.extra):
            pixel = splat(panel[row + sums.vectors * LANES + e])
            sums.set_extra(e, sums.get_extra(e) + column * pixel)


def _own_row(sums: Accumulators, panel: Buffer, j: int, row: Expr, scale: Expr) -> None:
    """One panel row times one weight of output j in all lanes: a load for every FMA."""
    for t, width in enumerate(sums.widths):
        x = panel[T.ramp(row + t * LANES, 1, width)]
        sums.set(j, t, sums.get(j, t) + narrow(scale, width) * x)


class _Scales:
    """Consecutive weights, each in all lanes of a vector.

    Four come with one load and are spread by shuffles within 128 bits: where every FMA waits for a
    load, one more for each weight would cost a tenth of the time.
    """

    def __init__(self, values: Buffer, at: Expr, count: int) -> None:
        self._fours = [self._load(values, at + first) for first in range(0, count, QUARTER)]

    @staticmethod
    def _load(values: Buffer, at: Expr) -> Expr:
        four = values[T.ramp(at, 1, QUARTER)]
        repeated = T.Shuffle([four] * (LANES // QUARTER), list(range(LANES)))
        # Without the fence LLVM turns each shuffle back into a load.
        return T.bind(T.call_llvm_intrin("float32x16", "llvm.arithmetic.fence", repeated))

    def __getitem__(self, index: int) -> Expr:
        within = [lane // QUARTER * QUARTER + index % QUARTER for lane in range(LANES)]
        return T.bind(T.Shuffle([self._fours[index // QUARTER]], within))


def _private(weights: Weights, sums: Accumulators, panel: Buffer, which: Expr) -> None:
    """Every output has its own rows, of any number: four 16-bit offsets come with one load."""
    outputs, values, indices = sums.outputs, weights.values, weights.indices
    assert indices is not None and weights.starts is not None
    start = T.bind(weights.starts[which])
    with T.serial(0, weights.starts[which + 1] - start) as step:
        word0 = T.bind((start + step) * outputs)
        value0 = T.bind(word0 * OFFSETS_PER_WORD)
        prefetch(values, value0 + AHEAD, OFFSETS_PER_WORD * outputs)
        prefetch(indices, word0 + AHEAD // OFFSETS_PER_WORD, outputs)
        words = [T.bind(indices[word0 + j]) for j in range(outputs)]
        scales = _Scales(values, value0, OFFSETS_PER_WORD * outputs)
        for u in range(OFFSETS_PER_WORD):
            for j in range(outputs):
                offset = (words[j] >> T.int64(16 * u)) & T.int64(0xFFFF)
                row = T.bind(offset * T.int64(sums.stride))
                _own_row(sums, panel, j, row, scales[u * outputs + j])


def _grouped(weights: Weights, sums: Accumulators, panel: Buffer, which: Expr) -> None:
    """Every output has its own n rows of each m: positions of a few bits, lengths known."""
    conv, config, values = weights.conv, weights.config, weights.values
    group, indices, outputs = config.grouped, weights.indices, sums.outputs
    assert group is not None and indices is not None
    entries = entries_of(conv, config)
    word0 = T.bind(which * (words_of(conv, config) * outputs))
    value0 = T.bind(which * (entries * outputs))
    rows_per_step = group.step // group.n * group.m
    mask = T.int64((1 << group.bits) - 1)
    with T.serial(0, entries // group.step) as step:
        value1 = T.bind(value0 + step * (group.step * outputs))
        prefetch(values, value1 + AHEAD, group.step * outputs)
        word = T.bind(word0 + step // group.steps_per_word * outputs)
        shift = T.bind(T.Cast("int64", step % group.steps_per_word * (group.step * group.bits)))
        words = [T.bind(indices[word + j] >> shift) for j in range(outputs)]
        base = T.bind(step * (rows_per_step * sums.stride))
        scales = _Scales(values, value1, group.step * outputs)
        for u in range(group.step):
            first = u // group.n * group.m * sums.stride
            for j in range(outputs):
                position = (words[j] >> T.int64(group.bits * u)) & mask
                row = T.bind(
                    position * T.int64(sums.stride) + (T.Cast("int64", base) + T.int64(first))
                )
                _own_row(sums, panel, j, row, scales[u * outputs + j])
