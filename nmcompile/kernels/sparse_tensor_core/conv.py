"""Convolution on tensor cores as an implicit GEMM: NHWC float16 in and out, float32 sums.

out[p, o] = activation(sum over (tap, c) of w[o, tap, c] * x[pixel of p under tap, c] + bias[o]
+ residual[p, o]), p running over (image, row, column) of the output.

A thread block owns one tile of output channels x pixels (`tiles.py`). Slices of 64 of the depth
travel through a ring of stages in shared memory by `cp.async`: the packed weights as they lie in
memory, and for every pixel the 128 bytes of input channels under the slice's taps, zeros where the
window leaves the image. The 16-byte vectors of pixel r are permuted by XOR with r % 8, so that both
the copies and `ldmatrix` meet each bank once. Weights are packed in the order of the registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.prim_func import Buffer, Expr, PrimFuncBuilder
from nmcompile.kernels.sparse_tensor_core import ptx
from nmcompile.kernels.sparse_tensor_core.epilogue import Tail, Thread, load_parts, save_part
from nmcompile.kernels.sparse_tensor_core.multiply import ROW_VECTORS, ROW_WORDS, multiplier
from nmcompile.kernels.sparse_tensor_core.tiles import DEPTH, VECTOR, Gemm, Method, TileConfig
from nmcompile.kernels.spec import Conv2d, Epilogue

COLUMN_BITS = 16  # where the bits of the kernel columns begin in a pixel's register


def emit_conv(
    name: str, conv: Conv2d, epilogue: Epilogue, config: TileConfig, method: Method
) -> Any:
    """The TIR function (x, weights, [bias], [residual], [scratch], [out]).

    x (N, H, W, C), residual and out (N, OH, OW, O): float16, channels rounded up to multiples of 8;
    what the extra channels of x hold must be finite, those of out become activation(residual).
    weights: int32, from `packing.pack_weights`; bias: float32, whole tiles of output channels.
    scratch: float32 of `Gemm.scratch_shape`, where the depth is split; its content is of no use.
    """
    return _Emitter(Gemm(conv, config, method), epilogue).emit(name)


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(self, gemm: Gemm, epilogue: Epilogue) -> None:
        self.gemm, self.epilogue = gemm, epilogue
        self.conv, self.config = gemm.conv, gemm.config
        self.stage_words = gemm.stage_bytes // 4
        self.weight_words = gemm.weight_bytes // 4
        self.copies = self.config.pixels * ROW_VECTORS // self.config.threads  # per thread

    def emit(self, name: str) -> Any:
        conv, gemm, epilogue = self.conv, self.gemm, self.epilogue
        in_shape = (conv.batch, conv.in_height, conv.in_width, gemm.in_channels)
        out_shape = (conv.batch, conv.out_height, conv.out_width, gemm.out_channels)
        with PrimFuncBuilder(name) as func:
            T.func_attr({"tirx.is_scheduled": True})
            x = func.tensor("x", in_shape, "float16")
            words = gemm.channel_tiles * gemm.slices * self.weight_words
            self.weights = func.tensor("weights", (words,), "int32")
            bias = None
            if epilogue.bias:
                bias = func.tensor("bias", (gemm.channel_tiles * self.config.channels,))
            residual = func.tensor("residual", out_shape, "float16") if epilogue.residual else None
            scratch = None
            if self.config.splits > 1:
                scratch = func.tensor("scratch", gemm.scratch_shape)
            out = None if epilogue.in_place else func.tensor("out", out_shape, "float16")
            self.x = func.flat(x)
            added = None if residual is None else func.flat(residual)
            tail = Tail(gemm, epilogue, bias, added, added if out is None else func.flat(out))
            if scratch is None:
                self._whole(tail)
            else:
                self._parts(tail, func.flat(scratch))
        return func.result()

    def _whole(self, tail: Tail) -> None:
        with T.launch_thread("blockIdx.x", self.gemm.tiles) as block:
            with self._threads() as index:
                thread = Thread(self.gemm, block, index)
                self._multiply(thread, 0, self.gemm.slices)
                tail.write(thread)

    @contextmanager
    def _threads(self) -> Iterator[Expr]:
        """The threads of a block, with registers for `resident` blocks per SM."""
        with T.launch_thread("threadIdx.x", self.config.threads) as index:
            with T.attr(T.int32(0), "tirx.launch_bounds_min_blocks_per_sm", self.config.resident):
                yield index

    def _parts(self, tail: Tail, scratch: Buffer) -> None:
        """Two launches: sums of parts of the depth, then their sum, in order, and the epilogue."""
        gemm = self.gemm
        with T.launch_thread("blockIdx.x", gemm.tiles) as block:
            with T.launch_thread("blockIdx.y", self.config.splits) as split:
                with self._threads() as index:
                    thread = Thread(gemm, block, index)
                    first = T.bind(split * gemm.split_slices)
                    count: Expr = gemm.split_slices
                    if gemm.slices % gemm.split_slices:
                        count = T.bind(T.min(count, gemm.slices - first))
                    self._multiply(thread, first, count)
                    save_part(scratch, thread, split)
        with T.launch_thread("blockIdx.x", gemm.tiles) as block:
            with self._threads() as index:
                thread = Thread(gemm, block, index)
                load_parts(scratch, thread)
                tail.write(thread)

    def _multiply(self, thread: Thread, first: Expr, count: Expr) -> None:
        """The sums of `count` slices of the depth from `first` on, which is at least one."""
        stages = self.config.stages
        thread.clear()
        self._locate_pixels(thread)
        way = multiplier(thread)

        def copy(ahead: Expr) -> None:
            self._copy_slice(thread, ahead % stages, first + ahead)

        for ahead in range(stages - 1):
            _when(ahead < count, copy, ahead)
            ptx.commit_copies()
        with T.serial(0, count) as step:
            # One group per slice: what may still be under way is all but the oldest.
            ptx.wait_copies(stages - 2)
            way.publish()
            # Others see the copies that have landed, and nobody reads the stage that is next.
            ptx.barrier()
            stage = T.bind(step % stages * self.stage_words)
            way.start(stage)
            _when(step + (stages - 1) < count, copy, step + (stages - 1))
            ptx.commit_copies()
            way.finish(stage)

    def _locate_pixels(self, thread: Thread) -> None:
        """Where the pixels that a thread copies begin in x, and which taps lie in the image."""
        conv, gemm = self.conv, self.gemm
        self.start = ptx.registers("start", self.copies, "int32")
        self.inside = ptx.registers("inside", self.copies)
        (top, left, _, _), (down, right) = conv.padding, conv.dilation
        with ptx.unrolled(self.copies) as copy:
            pixel = T.bind(thread.pixel_tile * self.config.pixels + self._row(thread, copy))
            row = T.bind(pixel // conv.out_width % conv.out_height * conv.stride[0] - top)
            column = T.bind(pixel % conv.out_width * conv.stride[1] - left)
            image = pixel // conv.out_pixels
            index = (image * conv.in_height + row) * conv.in_width + column
            T.buffer_store(self.start, index * gemm.in_channels, [copy])
            bits: Expr = T.uint32(0)
            for tap in range(conv.kernel[0]):
                bits = bits | _bit(row + tap * down, conv.in_height, tap)
            for tap in range(conv.kernel[1]):
                bits = bits | _bit(column + tap * right, conv.in_width, tap + COLUMN_BITS)
            found = T.if_then_else(pixel < gemm.pixels, bits, T.uint32(0))
            T.buffer_store(self.inside, found, [copy])

    def _row(self, thread: Thread, copy: Expr) -> Expr:
        """The pixel of the tile whose vector a thread copies."""
        return thread.index // ROW_VECTORS + copy * (self.config.threads // ROW_VECTORS)

    def _copy_slice(self, thread: Thread, stage: Expr, index: Expr) -> None:
        """Begin to copy slice `index` of the depth to a stage."""
        base = T.bind(stage * self.stage_words)
        self._copy_weights(thread, base, index)
        conv, gemm = self.conv, self.gemm
        lane = thread.index % ROW_VECTORS
        if gemm.vectors % ROW_VECTORS:
            vector = T.bind(index * ROW_VECTORS + lane)
            tap, channel = T.bind(vector // gemm.vectors), vector % gemm.vectors * VECTOR
        else:  # one tap for the whole slice
            per_tap = gemm.vectors // ROW_VECTORS
            tap, channel = T.bind(index // per_tap), index % per_tap * DEPTH + lane * VECTOR
        down, right = T.bind(tap // conv.kernel[1]), T.bind(tap % conv.kernel[1])
        # Past the last tap `down` is past the last kernel row, whose bit is never set.
        shift = down * conv.dilation[0] * conv.in_width + right * conv.dilation[1]
        offset = T.bind(shift * gemm.in_channels + channel)
        with ptx.unrolled(self.copies) as copy:
            bits = self.inside[copy]
            valid = T.bind((_shifted(bits, down) & _shifted(bits, right + COLUMN_BITS)) != 0)
            source = T.if_then_else(valid, self.start[copy] + offset, 0)
            row = T.bind(self._row(thread, copy))
            at = base + row * ROW_WORDS + (lane ^ row % ROW_VECTORS) * 4
            ptx.copy_async_or_zero(thread.shared.ptr_to([at]), self.x.ptr_to([source]), valid)

    def _copy_weights(self, thread: Thread, base: Expr, index: Expr) -> None:
        block = T.bind((thread.channel_tile * self.gemm.slices + index) * self.weight_words)
        vectors, threads = self.weight_words // 4, self.config.threads

        def copy(round_: Expr) -> None:
            at = T.bind((round_ * threads + thread.index) * 4)
            target = thread.shared.ptr_to([base + self.gemm.pixel_bytes // 4 + at])
            ptx.copy_async(target, self.weights.ptr_to([block + at]))

        if vectors >= threads:
            with ptx.unrolled(vectors // threads) as round_:
                copy(round_)
        if vectors % threads:
            _when(thread.index < vectors % threads, copy, vectors // threads)


def _when(condition: Expr, body: Any, argument: Expr) -> None:
    """The body under a condition, which may be known already."""
    if isinstance(condition, bool):
        if condition:
            body(argument)
        return
    with T.If(condition):
        with T.Then():
            body(argument)


def _bit(position: Expr, limit: int, bit: int) -> Expr:
    """Bit number `bit` where a position lies in 0 .. limit - 1."""
    inside = T.And(position >= 0, position < limit)
    return T.if_then_else(inside, T.uint32(1 << bit), T.uint32(0))


def _shifted(bits: Expr, count: Expr) -> Expr:
    """Bit number `count` as the lowest one, above it others."""
    return (bits >> T.Cast("uint32", count)) & T.uint32(1)
