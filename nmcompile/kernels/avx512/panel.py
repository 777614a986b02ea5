"""Sparse and dense convolution over packed panels: the main kernel family.

Vectors run over output pixels and weights are broadcast scalars, so sparsity along channels is
only a list of which panel rows to read. For every tile of output pixels the rows of a block of
input channels (im2col) are copied into a small contiguous panel, then all output channels are
computed from it. Two inner loops:

- *shared lists*: `outputs` channels read the same rows (1xN, dense): each loaded row feeds
  outputs x tile FMAs out of registers, bound by FMA;
- *private lists*: every output channel has its own rows (N:M, unstructured): one L1 load per FMA,
  bound by loads; four 16-bit row offsets come with one 64-bit load.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, PrimFuncBuilder, activate, lanes
from nmcompile.kernels.avx512.emit import load, prefetch, splat, store
from nmcompile.kernels.avx512.im2col import Panel, PanelSource
from nmcompile.kernels.spec import Conv2d, Epilogue

OFFSETS_PER_WORD = 4  # 16-bit row offsets packed in one 64-bit word
# Weights are prefetched this many floats ahead: they come from memory once per call, and the
# hardware's prefetchers stop at page borders.
AHEAD = 1024
MAX_UNROLL = 9  # panel rows of one list entry that are written out: a 3x3 kernel
MAX_EXTRA = 2  # pixels behind the last full vector that are worth single accumulators


@dataclass(frozen=True)
class PanelConfig:
    """Tile sizes of one panel convolution; chosen by `tiling`, read by the packer and the emitter.

    tile: vectors of 16 output pixels per tile.
    outputs: output channels accumulated together in registers.
    list_outputs: output channels that share one list of rows (N of 1xN), a multiple of `outputs`.
    run: consecutive panel rows that one list entry stands for.
    block_channels: input channels whose rows lie in the panel at once.
    chunks: parts into which the output channels are split for threads and caches.
    dense: all rows are kept, so no lists are stored.
    private: every output channel has its own list of single rows.
    """

    tile: int
    outputs: int
    list_outputs: int
    run: int
    block_channels: int
    chunks: int
    dense: bool = False
    private: bool = False

    @property
    def lane_outputs(self) -> int:
        """Output channels that one step of the list loop finishes."""
        return self.outputs if self.private else self.list_outputs


@dataclass(frozen=True)
class PackedSizes:
    """Lengths of the packed arrays, which are part of the compiled function's type."""

    values: int
    indices: int
    starts: int


def blocks_of(conv: Conv2d, config: PanelConfig) -> int:
    """Blocks of input channels per group."""
    return -(-conv.group_in // config.block_channels)


def lists_of(conv: Conv2d, config: PanelConfig) -> int:
    """Steps of the list loop per group, all chunks together."""
    return -(-conv.group_out // (config.lane_outputs * config.chunks)) * config.chunks


def tile_shapes(pixels: int, config: PanelConfig) -> list[Panel]:
    """The tiles of one image: equal ones, then what is left.

    One or two pixels that are left join the tile before them where the lists are shared.
    """
    size = config.tile * LANES
    full, rest = divmod(pixels, size)
    shapes = [Panel(size, config.tile, 0)] * full
    if not rest:
        return shapes
    vectors, extra = divmod(rest, LANES)
    if config.private or not 0 < extra <= MAX_EXTRA:
        return [*shapes, Panel(rest, -(-rest // LANES), 0)]
    if vectors:
        return [*shapes, Panel(rest, vectors, extra)]
    if full:
        return [*shapes[:-1], Panel(size + rest, config.tile, extra)]
    return [Panel(rest, 1, 0)]


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
    ) -> None:
        self.conv, self.epilogue, self.config, self.sizes = conv, epilogue, config, sizes
        self.blocks = blocks_of(conv, config)
        self.lists = lists_of(conv, config)
        self.padded_out = self.lists * config.lane_outputs
        self.ragged = self.padded_out != conv.group_out

    def emit(self, name: str) -> object:
        conv, epilogue, sizes = self.conv, self.epilogue, self.sizes
        out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
            self.values = func.tensor("values", (sizes.values,))
            if not self.config.dense:
                dtype = "int64" if self.config.private else "uint16"
                self.indices = func.tensor("indices", (sizes.indices,), dtype)
                self.starts = func.tensor("starts", (sizes.starts,), "int32")
            if epilogue.bias:
                self.bias = func.tensor("bias", (conv.groups * self.padded_out,))
            residual = func.tensor("residual", out_shape) if epilogue.residual else None
            out = func.tensor("out", out_shape)
            x, self.out = func.flat(x), func.flat(out)
            self.residual = func.flat(residual) if residual is not None else None
            self.source = PanelSource(conv, x)
            self._tiles()
        return func.result()

    def _tiles(self) -> None:
        """Parallel over (image, group, chunk, tile); the last tile has a body of its own."""
        conv, config = self.conv, self.config
        shapes = tile_shapes(conv.out_pixels, config)
        body, last = shapes[0], shapes[-1]
        items = conv.batch * conv.groups * config.chunks * len(shapes)
        with T.parallel(0, items) as item:
            tile = T.bind(item % len(shapes))
            outer = T.bind(item // len(shapes))
            chunk = T.bind(outer % config.chunks)
            group = T.bind(outer // config.chunks % conv.groups)
            image = T.bind(outer // (config.chunks * conv.groups))
            first = T.bind(tile * (config.tile * LANES))
            if last == body:
                self._tile(image, group, chunk, first, body)
                return
            with T.If(tile < len(shapes) - 1):
                with T.Then():
                    self._tile(image, group, chunk, first, body)
                with T.Else():
                    self._tile(image, group, chunk, first, last)

    def _tile(self, image: Expr, group: Expr, chunk: Expr, first: Expr, shape: Panel) -> None:
        conv, config = self.conv, self.config
        panel = T.alloc_buffer((config.block_channels * conv.taps * shape.stride,), align=64)
        lists = self.lists // config.chunks
        partial = None
        if self.blocks > 1:
            partial = T.alloc_buffer((lists * config.lane_outputs * shape.stride,), align=64)
        with T.serial(0, self.blocks) as block:
            channel = T.bind(group * conv.group_in + block * config.block_channels)
            count: Expr = config.block_channels
            if conv.group_in % config.block_channels:
                count = T.bind(T.min(count, conv.group_in - block * config.block_channels))
            self.source.fill(panel, shape, image, channel, count, first)
            with T.serial(0, lists) as index:
                at = _Position(image, group, block, chunk * lists + index, index, first, shape)
                if config.private:
                    self._private_list(panel, partial, at)
                else:
                    with T.serial(0, config.list_outputs // config.outputs) as part:
                        self._shared_list(panel, partial, at, part, count)

    def _shared_list(
        self, panel: Buffer, partial: Buffer, at: _Position, part: Expr, channels: Expr
    ) -> None:
        conv, config = self.conv, self.config
        outputs = config.outputs
        acc = _Accumulators(outputs, at.panel)
        local_out = T.bind(at.index * config.list_outputs + part * outputs)
        self._initialise(acc, partial, at, local_out)
        if config.dense:
            count = channels
            before = T.bind(
                (at.group * conv.group_in + at.block * config.block_channels) * self.lists
                + at.list * count
            )
        else:
            which = T.bind((at.group * self.blocks + at.block) * self.lists + at.list)
            before = T.bind(self.starts[which])
            count = T.bind(self.starts[which + 1] - before)
        weights = config.run * outputs
        value0 = T.bind(before * (config.run * config.list_outputs) + part * (count * weights))
        stride = at.panel.stride
        with T.serial(0, count) as entry:
            channel = entry if config.dense else self.indices[before + entry]
            row0 = T.bind(T.Cast("int32", channel) * (config.run * stride))
            value1 = T.bind(value0 + entry * weights)
            if config.run <= MAX_UNROLL:
                prefetch(self.values, value1 + AHEAD, weights)
                for k in range(config.run):
                    self._multiply(acc, panel, row0 + k * stride, value1 + k * outputs)
            else:
                with T.serial(0, config.run) as k:
                    prefetch(self.values, value1 + k * outputs + AHEAD, outputs)
                    self._multiply(acc, panel, row0 + k * stride, value1 + k * outputs)
        self._finish(acc, partial, at, local_out)

    def _multiply(self, acc: _Accumulators, panel: Buffer, row: Expr, value: Expr) -> None:
        """One panel row times `outputs` weights."""
        xs = [T.bind(load(panel, row + t * LANES)) for t in range(acc.vectors)]
        for j in range(acc.outputs):
            weight = T.bind(splat(self.values[value + j]))
            for t, x in enumerate(xs):
                acc.set(j, t, acc.get(j, t) + weight * x)
        if acc.extra:
            # Pixels that would waste most of a vector: here the weights are the vector.
            weights = T.bind(load(self.values, value, acc.outputs))
            for e in range(acc.extra):
                pixel = splat(panel[row + acc.vectors * LANES + e])
                acc.set_extra(e, acc.get_extra(e) + weights * pixel)

    def _private_list(self, panel: Buffer, partial: Buffer, at: _Position) -> None:
        outputs, stride = self.config.outputs, at.panel.stride
        acc = _Accumulators(outputs, at.panel)
        local_out = T.bind(at.index * outputs)
        self._initialise(acc, partial, at, local_out)
        which = T.bind((at.group * self.blocks + at.block) * self.lists + at.list)
        start = T.bind(self.starts[which])
        with T.serial(0, self.starts[which + 1] - start) as step:
            word0 = T.bind((start + step) * outputs)
            value0 = T.bind(word0 * OFFSETS_PER_WORD)
            prefetch(self.values, value0 + AHEAD, OFFSETS_PER_WORD * outputs)
            prefetch(self.indices, word0 + AHEAD // OFFSETS_PER_WORD, outputs)
            words = [T.bind(self.indices[word0 + j]) for j in range(outputs)]
            for u in range(OFFSETS_PER_WORD):
                for j in range(outputs):
                    offset = (words[j] >> T.int64(16 * u)) & T.int64(0xFFFF)
                    row = T.bind(T.Cast("int32", offset) * stride)
                    weight = T.bind(splat(self.values[value0 + (u * outputs + j)]))
                    for t in range(acc.vectors):
                        x = load(panel, row + t * LANES)
                        acc.set(j, t, acc.get(j, t) + weight * x)
        self._finish(acc, partial, at, local_out)

    def _initialise(
        self, acc: _Accumulators, partial: Buffer, at: _Position, local_out: Expr
    ) -> None:
        """Start from the bias (or zero) in the first block, from the partial sums in the others."""

        def from_bias() -> None:
            channel = T.bind(at.group * self.padded_out + self._channel(at, local_out))
            for j in range(acc.outputs):
                start = splat(self.bias[channel + j]) if self.epilogue.bias else splat(0.0)
                for t in range(acc.vectors):
                    acc.set(j, t, start)
            for e in range(acc.extra):
                bias = self.epilogue.bias
                acc.set_extra(e, load(self.bias, channel, acc.outputs) if bias else splat(0.0))

        if partial is None:
            from_bias()
            return
        with T.If(at.block == 0):
            with T.Then():
                from_bias()
            with T.Else():
                self._exchange(acc, partial, local_out, restore=True)

    def _exchange(
        self, acc: _Accumulators, partial: Buffer, local_out: Expr, restore: bool
    ) -> None:
        """Move the accumulators from or to the partial sums between two blocks of channels."""
        base = T.bind(local_out * acc.stride)
        for j in range(acc.outputs):
            for t in range(acc.vectors):
                where = base + (j * acc.stride + t * LANES)
                if restore:
                    acc.set(j, t, load(partial, where))
                else:
                    store(partial, where, acc.get(j, t))
        for e in range(acc.extra):
            # The place behind the vectors of output e has room for a whole vector.
            where = base + (e * acc.stride + acc.vectors * LANES)
            if restore:
                acc.set_extra(e, load(partial, where))
            else:
                store(partial, where, acc.get_extra(e))

    def _finish(self, acc: _Accumulators, partial: Buffer, at: _Position, local_out: Expr) -> None:
        if partial is None:
            self._write(acc, at, local_out)
            return
        with T.If(at.block == self.blocks - 1):
            with T.Then():
                self._write(acc, at, local_out)
            with T.Else():
                self._exchange(acc, partial, local_out, restore=False)

    def _write(self, acc: _Accumulators, at: _Position, local_out: Expr) -> None:
        """Epilogue and store; channels that only pad the last list are left out."""
        conv, activation = self.conv, self.epilogue.activation
        channel0 = T.bind(self._channel(at, local_out))
        plane = at.image * conv.out_channels + at.group * conv.group_out + channel0
        base = T.bind(plane * conv.out_pixels + at.first)

        def write_channel(j: int) -> None:
            where = base + j * conv.out_pixels
            for t in range(acc.vectors):
                active = min(LANES, at.panel.pixels - t * LANES)
                value = acc.get(j, t)
                if self.residual is not None:
                    value = value + load(self.residual, where + t * LANES, active)
                store(self.out, where + t * LANES, activate(value, activation), active)
            for e in range(acc.extra):
                pixel = where + (acc.vectors * LANES + e)
                value = splat(acc.column(e)[j])
                if self.residual is not None:
                    value = value + splat(self.residual[pixel])
                store(self.out, pixel, activate(value, activation), 1)

        acc.spill_extra()
        for j in range(acc.outputs):
            if self.ragged:
                with T.If(channel0 + j < conv.group_out):
                    with T.Then():
                        write_channel(j)
            else:
                write_channel(j)

    def _channel(self, at: _Position, local_out: Expr) -> Expr:
        """Output channel within the group, from the channel within the chunk."""
        return (at.list - at.index) * self.config.lane_outputs + local_out


@dataclass(frozen=True)
class _Position:
    """Where in the loops a list is: loop variables, and the static shape of the tile."""

    image: Expr
    group: Expr
    block: Expr
    list: Expr  # over all chunks
    index: Expr  # within the chunk
    first: Expr
    panel: Panel


class _Accumulators:
    """outputs x vectors registers, and one per extra pixel with a lane per output.

    One buffer of a single vector each, so that LLVM turns them into registers.
    """

    def __init__(self, outputs: int, panel: Panel) -> None:
        self.outputs, self.vectors, self.extra = outputs, panel.vectors, panel.extra
        self.stride = panel.stride

        def one() -> Buffer:
            return T.alloc_buffer((LANES,), scope="local")

        self._buffers = [[one() for _ in range(panel.vectors)] for _ in range(outputs)]
        self._extra = [one() for _ in range(panel.extra)]
        self._columns = [one() for _ in range(panel.extra)]

    def get(self, j: int, t: int) -> Expr:
        return self._buffers[j][t][lanes(0)]

    def set(self, j: int, t: int, value: Expr) -> None:
        T.buffer_store(self._buffers[j][t], value, [lanes(0)])

    def get_extra(self, e: int) -> Expr:
        return self._extra[e][lanes(0)]

    def set_extra(self, e: int, value: Expr) -> None:
        T.buffer_store(self._extra[e], value, [lanes(0)])

    def spill_extra(self) -> None:
        """Copy the extra pixels to memory, where single lanes can be read."""
        for e in range(self.extra):
            T.buffer_store(self._columns[e], self.get_extra(e), [lanes(0)])

    def column(self, e: int) -> Buffer:
        """After `spill_extra`: extra pixel e of every output."""
        return self._columns[e]


def emit_panel_conv(
    name: str, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
) -> object:
    """The TIR function (x, values, [indices, starts], [bias], [residual], out)."""
    return _Emitter(conv, epilogue, config, sizes).emit(name)


