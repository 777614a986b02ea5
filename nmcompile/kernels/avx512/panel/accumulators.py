"""The sums of one list: where they start, where they rest between blocks, how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    activate_in_place,
    lanes,
    load,
    splat,
    split_activation,
    store,
    widen,
)
from nmcompile.kernels.avx512.panel.config import Panel
from nmcompile.kernels.spec import Activation


class Accumulators:
    """outputs x vectors registers, and one per extra pixel with a lane per output.

    One buffer of a single vector each, so that LLVM turns them into registers.
    """

    def __init__(self, outputs: int, panel: Panel, stride: int | None = None) -> None:
        """Sums over rows of `panel`, which lie `stride` floats apart, by default side by side."""
        self.outputs, self.vectors, self.extra = outputs, panel.vectors, panel.extra
        self.stride = panel.stride if stride is None else stride
        self.widths = panel.widths

        def one(width: int) -> Buffer:
            return T.alloc_buffer((width,), scope="local")

        self._sums = [[one(width) for width in panel.widths] for _ in range(outputs)]
        self._extra = [one(LANES) for _ in range(panel.extra)]

    def get(self, j: int, t: int) -> Expr:
        """Vector t of output j, of `widths[t]` lanes."""
        return self._sums[j][t][T.ramp(0, 1, self.widths[t])]

    def get_wide(self, j: int, t: int) -> Expr:
        """Vector t of output j in the first of 16 lanes."""
        return widen(self.get(j, t), self.widths[t])

    def set(self, j: int, t: int, value: Expr) -> None:
        """Replace vector t of output j."""
        T.buffer_store(self._sums[j][t], value, [T.ramp(0, 1, self.widths[t])])

    def get_extra(self, e: int) -> Expr:
        """Extra pixel e of all outputs."""
        return self._extra[e][lanes(0)]

    def set_extra(self, e: int, value: Expr) -> None:
        """Replace extra pixel e of all outputs."""
        T.buffer_store(self._extra[e], value, [lanes(0)])

    def start(self, bias: Buffer | None, channels: Sequence[Expr]) -> None:
        """Begin with the bias of the outputs' `channels`, or with zero."""
        for j, channel in enumerate(channels):
            value = T.float32(0) if bias is None else T.bind(bias[channel])
            for t, width in enumerate(self.widths):
                self.set(j, t, T.broadcast(value, width))
        for e in range(self.extra):
            # Only lists whose biases lie side by side have extra pixels.
            column = splat(0.0) if bias is None else load(bias, channels[0], self.outputs)
            self.set_extra(e, column)

    def save(self, partial: Buffer, rows: Sequence[Expr], origin: Expr = 0) -> None:
        """Store each output's sums in its row of `stride` floats, counted from `origin` on."""
        bases = [T.bind(row * self.stride + origin) for row in rows]
        for j, base in enumerate(bases):
            for t in range(self.vectors):
                store(partial, base + t * LANES, self.get_wide(j, t))
        for e in range(self.extra):
            # The place behind the vectors of output e has room for a whole vector.
            store(partial, bases[e] + self.vectors * LANES, self.get_extra(e))

    def restore(self, partial: Buffer, rows: Sequence[Expr]) -> None:
        """Load what `save` stored."""
        bases = [T.bind(row * self.stride) for row in rows]
        for j, base in enumerate(bases):
            for t, width in enumerate(self.widths):
                self.set(j, t, partial[T.ramp(base + t * LANES, 1, width)])
        for e in range(self.extra):
            self.set_extra(e, load(partial, bases[e] + self.vectors * LANES))


@dataclass(frozen=True)
class Destination:
    """Where finished sums go: pixels of some output channels of one image.

    planes: of each output, counted over all images and channels.
    channels: of each output within its group.
    limit: on the channels, where the last list is padded, else None.
    channel_at: channel of an output whose number is computed; None where lists are of single ones.
    consecutive: whether the channels follow each other.
    first: pixel at which the tile begins.
    pixels: of one channel.
    """

    out: Buffer
    residual: Buffer | None
    activation: Activation
    planes: Sequence[Expr]
    channels: Sequence[Expr]
    limit: int | None
    channel_at: Callable[[Expr], Expr] | None
    consecutive: bool
    first: Expr
    pixels: int

    def start(self, j: int) -> Expr:
        """The tile's first pixel in the plane of output j."""
        return self.planes[j] * self.pixels + self.first

    def write(self, sums: Accumulators, panel: Panel) -> None:
        """Add the residual, apply the activation, store; leave padding channels out."""
        columns = [T.alloc_buffer((LANES,), scope="local") for _ in range(sums.extra)]
        for e, column in enumerate(columns):
            T.buffer_store(column, sums.get_extra(e), [lanes(0)])
        now, later = split_activation(self.activation)
        for j, channel in enumerate(self.channels):
            if self.limit is None:
                self._write_channel(sums, panel, columns, j, now)
                continue
            with T.If(channel < self.limit):
                with T.Then():
                    self._write_channel(sums, panel, columns, j, now)
        if later.kind != "none":
            self._activate(panel, later)

    def _activate(self, panel: Panel, activation: Activation) -> None:
        """Apply an activation that is too long to be written out for every vector."""
        if not self.consecutive:
            self._activate_each(panel, activation)
            return
        count: Expr = len(self.channels)
        if self.limit is not None:
            count = T.min(count, self.limit - self.channels[0])
        begin = T.bind(self.start(0))
        with T.serial(0, count) as j:
            activate_in_place(self.out, begin + j * self.pixels, panel.pixels, activation)

    def _activate_each(self, panel: Panel, activation: Activation) -> None:
        """The same, one output after the other."""

        def one(channel: Expr, begin: Expr) -> None:
            if self.limit is None:
                activate_in_place(self.out, begin, panel.pixels, activation)
                return
            with T.If(channel < self.limit):
                with T.Then():
                    activate_in_place(self.out, begin, panel.pixels, activation)

        if self.channel_at is None:
            for j, channel in enumerate(self.channels):
                one(channel, T.bind(self.start(j)))
            return
        with T.serial(0, len(self.channels)) as j:
            channel = T.bind(self.channel_at(j))
            plane = self.planes[0] - self.channels[0] + channel
            one(channel, T.bind(plane * self.pixels + self.first))

    def _write_channel(
        self,
        sums: Accumulators,
        panel: Panel,
        columns: list[Buffer],
        j: int,
        activation: Activation,
    ) -> None:
        where = T.bind(self.start(j))
        for t in range(sums.vectors):
            active = min(LANES, panel.pixels - t * LANES)
            value = sums.get_wide(j, t)
            if self.residual is not None:
                value = value + load(self.residual, where + t * LANES, active)
            store(self.out, where + t * LANES, activate(value, activation), active)
        for e, column in enumerate(columns):
            pixel = where + (sums.vectors * LANES + e)
            value = splat(column[j])
            if self.residual is not None:
                value = value + splat(self.residual[pixel])
            store(self.out, pixel, activate(value, activation), 1)
