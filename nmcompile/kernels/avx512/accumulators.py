"""The sums of one list: where they start, where they rest between blocks, how they are written."""

from __future__ import annotations

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
from nmcompile.kernels.avx512.panel_config import Panel
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

    def start(self, bias: Buffer | None, channel: Expr) -> None:
        """Begin with the bias of outputs `channel`, `channel` + 1, ..., or with zero."""
        for j in range(self.outputs):
            value = T.float32(0) if bias is None else T.bind(bias[channel + j])
            for t, width in enumerate(self.widths):
                self.set(j, t, T.broadcast(value, width))
        for e in range(self.extra):
            self.set_extra(e, splat(0.0) if bias is None else load(bias, channel, self.outputs))

    def save(self, partial: Buffer, output: Expr, origin: Expr = 0) -> None:
        """Store the sums of outputs `output`, ... in rows of `stride` floats from `origin` on."""
        base = T.bind(output * self.stride + origin)
        for j in range(self.outputs):
            for t in range(self.vectors):
                store(partial, base + (j * self.stride + t * LANES), self.get_wide(j, t))
        for e in range(self.extra):
            # The place behind the vectors of output e has room for a whole vector.
            where = base + (e * self.stride + self.vectors * LANES)
            store(partial, where, self.get_extra(e))

    def restore(self, partial: Buffer, output: Expr) -> None:
        """Load what `save` stored."""
        base = T.bind(output * self.stride)
        for j in range(self.outputs):
            for t, width in enumerate(self.widths):
                self.set(j, t, partial[T.ramp(base + (j * self.stride + t * LANES), 1, width)])
        for e in range(self.extra):
            where = base + (e * self.stride + self.vectors * LANES)
            self.set_extra(e, load(partial, where))


@dataclass(frozen=True)
class Destination:
    """Where finished sums go: pixels of consecutive output channels of one image.

    channels: a limit on `channel` + j where the last list is padded, else None.
    """

    out: Buffer
    residual: Buffer | None
    activation: Activation
    plane: Expr  # of output 0 of the list, over all images and channels
    channel: Expr  # of output 0 of the list within its group
    channels: int | None
    first: Expr  # pixel
    pixels: int  # of one channel

    def write(self, sums: Accumulators, panel: Panel) -> None:
        """Add the residual, apply the activation, store; leave padding channels out."""
        base = T.bind(self.plane * self.pixels + self.first)
        columns = [T.alloc_buffer((LANES,), scope="local") for _ in range(sums.extra)]
        for e, column in enumerate(columns):
            T.buffer_store(column, sums.get_extra(e), [lanes(0)])
        now, later = split_activation(self.activation)
        for j in range(sums.outputs):
            if self.channels is None:
                self._write_channel(sums, panel, columns, base, j, now)
                continue
            with T.If(self.channel + j < self.channels):
                with T.Then():
                    self._write_channel(sums, panel, columns, base, j, now)
        if later.kind == "none":
            return
        count: Expr = sums.outputs
        if self.channels is not None:
            count = T.min(count, self.channels - self.channel)
        with T.serial(0, count) as j:
            activate_in_place(self.out, base + j * self.pixels, panel.pixels, later)

    def _write_channel(
        self,
        sums: Accumulators,
        panel: Panel,
        columns: list[Buffer],
        base: Expr,
        j: int,
        activation: Activation,
    ) -> None:
        where = base + j * self.pixels
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
