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
from nmcompile.kernels.avx512.emit import load, splat, store
from nmcompile.kernels.avx512.staging import StagedLayout, stage
from nmcompile.kernels.spec import Conv2d, Epilogue

OFFSETS_PER_WORD = 4  # 16-bit row offsets packed in one 64-bit word


@dataclass(frozen=True)
class PanelConfig:
    """Tile sizes of one panel convolution; chosen by `tiling`, read by the packer and the emitter.

    tile: vectors of 16 output pixels per tile.
    outputs: output channels accumulated together in registers.
    list_outputs: output channels that share one list of rows (N of 1xN), a multiple of `outputs`;
        1 where every output channel has its own list.
    run: consecutive panel rows that one list entry stands for.
    block_channels: input channels whose rows lie in the panel at once.
    chunks: parts into which the output channels are split for threads and caches.
    dense: all rows are kept, so no lists are stored.
    """

    tile: int
    outputs: int
    list_outputs: int
    run: int
    block_channels: int
    chunks: int
    dense: bool = False

    @property
    def private(self) -> bool:
        """Whether each output channel has its own list."""
        return self.list_outputs == 1

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


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
    ) -> None:
        self.conv, self.epilogue, self.config, self.sizes = conv, epilogue, config, sizes
        self.layout = None if conv.is_pointwise else StagedLayout.of(conv)
        self.blocks = blocks_of(conv, config)
        self.lists = lists_of(conv, config)
        self.padded_out = self.lists * config.lane_outputs
        self.ragged = self.padded_out != conv.group_out

    def emit(self, name: str) -> object:
        conv, epilogue, sizes = self.conv, self.epilogue, self.sizes
        out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
            values = func.tensor("values", (sizes.values,))
            if not self.config.dense:
                dtype = "int64" if self.config.private else "uint16"
                self.indices = func.tensor("indices", (sizes.indices,), dtype)
                self.starts = func.tensor("starts", (sizes.starts,), "int32")
            if epilogue.bias:
                self.bias = func.tensor("bias", (conv.groups * self.padded_out,))
            residual = func.tensor("residual", out_shape) if epilogue.residual else None
            out = func.tensor("out", out_shape)
            self.values, self.x, self.out = values, func.flat(x), func.flat(out)
            self.residual = func.flat(residual) if residual is not None else None
            if self.layout is None:
                self.source = self.x
            else:
                self.source = T.alloc_buffer((self.layout.size,), align=64)
                stage(conv, self.layout, self.x, self.source)
            self._tiles()
        return func.result()

    def _tiles(self) -> None:
        """Parallel over (image, group, chunk, tile); the last tile has a body of its own."""
        conv, config = self.conv, self.config
        pixels = conv.out_pixels
        full = pixels // (config.tile * LANES)
        rest = pixels - full * config.tile * LANES
        tiles = full + (rest > 0)
        items = conv.batch * conv.groups * config.chunks * tiles
        with T.parallel(0, items) as item:
            tile = T.bind(item % tiles)
            outer = T.bind(item // tiles)
            chunk = T.bind(outer % config.chunks)
            group = T.bind(outer // config.chunks % conv.groups)
            image = T.bind(outer // (config.chunks * conv.groups))
            first = T.bind(tile * (config.tile * LANES))
            if full and rest:
                with T.If(tile < full):
                    with T.Then():
                        self._tile(image, group, chunk, first, config.tile * LANES)
                    with T.Else():
                        self._tile(image, group, chunk, first, rest)
            else:
                self._tile(image, group, chunk, first, rest or config.tile * LANES)

    def _tile(self, image: Expr, group: Expr, chunk: Expr, first: Expr, pixels: int) -> None:
        conv, config = self.conv, self.config
        vectors = -(-pixels // LANES)
        rows = config.block_channels * conv.taps
        panel = T.alloc_buffer((rows * vectors * LANES,), align=64)
        lists = self.lists // config.chunks
        partial = None
        if self.blocks > 1:
            partial = T.alloc_buffer((lists * config.lane_outputs * vectors * LANES,), align=64)
        with T.serial(0, self.blocks) as block:
            self._pack(panel, image, group, block, first, pixels)
            with T.serial(0, lists) as index:
                at = _Position(image, group, block, chunk * lists + index, index, first, pixels)
                if config.private:
                    self._private_list(panel, partial, at)
                else:
                    with T.serial(0, config.list_outputs // config.outputs) as part:
                        self._shared_list(panel, partial, at, part)

    def _pack(
        self, panel: Buffer, image: Expr, group: Expr, block: Expr, first: Expr, pixels: int
    ) -> None:
        """Copy the rows of one block of input channels under the tile's pixels."""
        conv, config = self.conv, self.config
        vectors = -(-pixels // LANES)
        channel0 = T.bind(
            image * conv.in_channels + group * conv.group_in + block * config.block_channels
        )
        count: Expr = config.block_channels
        if conv.group_in % config.block_channels:
            count = T.bind(T.min(count, conv.group_in - block * config.block_channels))
        size = conv.out_pixels if self.layout is None else self.layout.channel
        with T.serial(0, count) as c:
            source = T.bind((channel0 + c) * size + first)
            target = T.bind(c * (conv.taps * vectors * LANES))
            for kh in range(conv.kernel[0]):
                for kw in range(conv.kernel[1]):
                    row = kh * conv.kernel[1] + kw
                    shift = 0 if self.layout is None else self.layout.row_offset(kh, kw)
                    for v in range(vectors):
                        # The staged copy has slack behind it; the input itself must not be
                        # read past its end.
                        active = LANES if self.layout else min(LANES, pixels - v * LANES)
                        value = load(self.source, source + (shift + v * LANES), active)
                        store(panel, target + (row * vectors + v) * LANES, value)

    def _shared_list(self, panel: Buffer, partial: Buffer, at: _Position, part: Expr) -> None:
        conv, config = self.conv, self.config
        outputs, vectors = config.outputs, at.vectors
        acc = _Accumulators(outputs, vectors)
        local_out = T.bind(at.index * config.list_outputs + part * outputs)
        self._initialise(acc, partial, at, local_out)
        if config.dense:
            count: Expr = config.block_channels
            if conv.group_in % count:
                count = T.bind(T.min(count, conv.group_in - at.block * count))
            entries_before = T.bind(
                (at.group * conv.group_in + at.block * config.block_channels) * self.lists
                + at.list * count
            )
        else:
            which = T.bind((at.group * self.blocks + at.block) * self.lists + at.list)
            entries_before = T.bind(self.starts[which])
            count = T.bind(self.starts[which + 1] - entries_before)
        weights = config.run * outputs
        value0 = T.bind(
            entries_before * (config.run * config.list_outputs) + part * (count * weights)
        )
        with T.serial(0, count) as entry:
            channel = entry if config.dense else self.indices[entries_before + entry]
            row0 = T.bind(T.Cast("int32", channel) * (config.run * vectors * LANES))
            value1 = T.bind(value0 + entry * weights)
            if config.run <= 9:
                for k in range(config.run):
                    self._multiply(acc, panel, row0 + k * vectors * LANES, value1 + k * outputs)
            else:
                with T.serial(0, config.run) as k:
                    self._multiply(acc, panel, row0 + k * (vectors * LANES), value1 + k * outputs)
        self._finish(acc, partial, at, local_out)

    def _multiply(self, acc: _Accumulators, panel: Buffer, row: Expr, value: Expr) -> None:
        """One panel row times `outputs` weights."""
        xs = [T.bind(load(panel, row + t * LANES)) for t in range(acc.vectors)]
        for j in range(acc.outputs):
            weight = T.bind(splat(self.values[value + j]))
            for t, x in enumerate(xs):
                acc.set(j, t, acc.get(j, t) + weight * x)

    def _private_list(self, panel: Buffer, partial: Buffer, at: _Position) -> None:
        config = self.config
        outputs, vectors = config.outputs, at.vectors
        acc = _Accumulators(outputs, vectors)
        local_out = T.bind(at.index * outputs)
        self._initialise(acc, partial, at, local_out)
        which = T.bind((at.group * self.blocks + at.block) * self.lists + at.list)
        start = T.bind(self.starts[which])
        with T.serial(0, self.starts[which + 1] - start) as step:
            word0 = T.bind((start + step) * outputs)
            words = [T.bind(self.indices[word0 + j]) for j in range(outputs)]
            for u in range(OFFSETS_PER_WORD):
                for j in range(outputs):
                    offset = (words[j] >> T.int64(16 * u)) & T.int64(0xFFFF)
                    row = T.bind(T.Cast("int32", offset) * (vectors * LANES))
                    value = word0 * OFFSETS_PER_WORD + (u * outputs + j)
                    weight = T.bind(splat(self.values[value]))
                    for t in range(vectors):
                        x = load(panel, row + t * LANES)
                        acc.set(j, t, acc.get(j, t) + weight * x)
        self._finish(acc, partial, at, local_out)

    def _initialise(
        self, acc: _Accumulators, partial: Buffer, at: _Position, local_out: Expr
    ) -> None:
        """Start from the bias (or zero) in the first block, from the partial sums in the others."""

        def from_bias() -> None:
            channel = at.group * self.padded_out + self._channel(at, local_out)
            for j in range(acc.outputs):
                start = splat(self.bias[channel + j]) if self.epilogue.bias else splat(0.0)
                for t in range(acc.vectors):
                    acc.set(j, t, start)

        if partial is None:
            from_bias()
            return
        with T.If(at.block == 0):
            with T.Then():
                from_bias()
            with T.Else():
                for j in range(acc.outputs):
                    for t in range(acc.vectors):
                        where = (local_out + j) * (acc.vectors * LANES) + t * LANES
                        acc.set(j, t, load(partial, where))

    def _finish(self, acc: _Accumulators, partial: Buffer, at: _Position, local_out: Expr) -> None:
        if partial is None:
            self._write(acc, at, local_out)
            return
        with T.If(at.block == self.blocks - 1):
            with T.Then():
                self._write(acc, at, local_out)
            with T.Else():
                for j in range(acc.outputs):
                    for t in range(acc.vectors):
                        where = (local_out + j) * (acc.vectors * LANES) + t * LANES
                        store(partial, where, acc.get(j, t))

    def _write(self, acc: _Accumulators, at: _Position, local_out: Expr) -> None:
        """Epilogue and store; channels that only pad the last list are left out."""
        conv = self.conv
        for j in range(acc.outputs):
            channel = T.bind(self._channel(at, local_out) + j)

            def write(j: int = j, channel: Expr = channel) -> None:
                plane = at.image * conv.out_channels + at.group * conv.group_out + channel
                where = T.bind(plane * conv.out_pixels + at.first)
                for t in range(acc.vectors):
                    active = min(LANES, at.pixels - t * LANES)
                    value = acc.get(j, t)
                    if self.residual is not None:
                        value = value + load(self.residual, where + t * LANES, active)
                    value = activate(value, self.epilogue.activation)
                    store(self.out, where + t * LANES, value, active)

            if self.ragged:
                with T.If(channel < conv.group_out):
                    with T.Then():
                        write()
            else:
                write()

    def _channel(self, at: _Position, local_out: Expr) -> Expr:
        """Output channel within the group, from the channel within the chunk."""
        return (at.list - at.index) * self.config.lane_outputs + local_out


@dataclass(frozen=True)
class _Position:
    """Where in the loops a list is: loop variables, and the tile's static number of pixels."""

    image: Expr
    group: Expr
    block: Expr
    list: Expr  # over all chunks
    index: Expr  # within the chunk
    first: Expr
    pixels: int

    @property
    def vectors(self) -> int:
        return -(-self.pixels // LANES)


class _Accumulators:
    """outputs x vectors registers; constant indices let LLVM keep them out of memory."""

    def __init__(self, outputs: int, vectors: int) -> None:
        self.outputs, self.vectors = outputs, vectors
        self._buffer = T.alloc_buffer((outputs * vectors * LANES,), scope="local")

    def get(self, j: int, t: int) -> Expr:
        return self._buffer[lanes((j * self.vectors + t) * LANES)]

    def set(self, j: int, t: int, value: Expr) -> None:
        T.buffer_store(self._buffer, value, [lanes((j * self.vectors + t) * LANES)])


def emit_panel_conv(
    name: str, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
) -> object:
    """The TIR function (x, values, [indices, starts], [bias], [residual], out)."""
    return _Emitter(conv, epilogue, config, sizes).emit(name)


