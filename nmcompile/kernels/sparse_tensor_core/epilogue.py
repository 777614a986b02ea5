"""From the sums in registers to the output: bias, residual, activation, 16-byte stores.

The sums of a thread lie scattered over channels and pixels, so they pass through shared memory,
as float32 in (pixel, channel) order: nothing is rounded before the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.prim_func import Buffer, Expr
from nmcompile.kernels.sparse_tensor_core import ptx
from nmcompile.kernels.sparse_tensor_core.tiles import PIXELS, VECTOR, Gemm
from nmcompile.kernels.spec import Epilogue
from nmcompile.sparsity.tensor_core import LANES, ROWS


class Thread:
    """One thread of a block: where it is, its sums, and the shared memory."""

    def __init__(self, gemm: Gemm, block: Expr, index: Expr) -> None:
        config = gemm.config
        self.gemm, self.block, self.index = gemm, block, index
        # Blocks that run at the same time share the pixels, which are the larger operand.
        self.channel_tile = T.bind(block % gemm.channel_tiles)
        self.pixel_tile = T.bind(block // gemm.channel_tiles)
        self.lane = T.bind(index % LANES)
        self.warp_row = T.bind(index // LANES // config.warps[1])
        self.warp_column = T.bind(index // LANES % config.warps[1])
        self.shared = ptx.shared_memory(gemm.shared_bytes // 4, gemm.shared_align)
        self.sums = ptx.registers("sums", config.rows * config.columns * 4, "float32")

    def clear(self) -> None:
        """Set the sums to zero."""
        config = self.gemm.config
        with ptx.unrolled(config.rows * config.columns * 4) as i:
            T.buffer_store(self.sums, T.float32(0), [i])


@dataclass(frozen=True, eq=False)
class Tail:
    """Writes the output of a tile; buffers are flat, `residual` and `out` float16."""

    gemm: Gemm
    epilogue: Epilogue
    bias: Buffer | None
    residual: Buffer | None
    out: Buffer

    def write(self, thread: Thread) -> None:
        """The output of all pixels and channels of the tile that exist."""
        config = self.gemm.config
        # The stages are about to be overwritten.
        ptx.wait_copies(0)
        ptx.barrier()
        _stage_sums(thread)
        ptx.barrier()
        per_pixel = config.channels // VECTOR
        values = ptx.registers("values", VECTOR, "float32")
        packed = ptx.registers("packed", VECTOR // 2)
        extra = ptx.registers("extra", VECTOR // 2) if self.residual is not None else None
        # A thread always has the same channels: the threads are whole pixels.
        assert config.threads % per_pixel == 0
        local = T.bind(thread.index % per_pixel * VECTOR)
        channel = T.bind(thread.channel_tile * config.channels + local)
        biases = self._load_bias(channel)
        with ptx.unrolled(config.pixels * per_pixel // config.threads) as round_:
            row = round_ * (config.threads // per_pixel) + thread.index // per_pixel
            row = T.bind(row)
            pixel = T.bind(thread.pixel_tile * config.pixels + row)
            with T.If(self._exists(pixel, channel)):
                with T.Then():
                    at = T.bind(row * self.gemm.pitch + local)
                    for half in range(2):
                        source = thread.shared.ptr_to([at + half * 4])
                        ptx.load_shared(values, half * 4, 4, source)
                    # In 32-bit words of two channels.
                    index = T.bind(pixel * self.gemm.out_channels + channel)
                    self._finish(values, biases, extra, packed, index)

    def _exists(self, pixel: Expr, channel: Expr) -> Expr:
        checks = []
        if self.gemm.pixels % self.gemm.config.pixels:
            checks.append(pixel < self.gemm.pixels)
        if self.gemm.out_channels % self.gemm.config.channels:
            checks.append(channel < self.gemm.out_channels)
        if not checks:
            return T.bool(True)
        return checks[0] if len(checks) == 1 else T.And(*checks)

    def _load_bias(self, channel: Expr) -> Buffer | None:
        if self.bias is None:
            return None
        biases = ptx.registers("biases", VECTOR, "float32")
        for half in range(2):
            ptx.load_global(biases, half * 4, 4, self.bias.ptr_to([channel + half * 4]))
        return biases

    def _finish(
        self,
        values: Buffer,
        biases: Buffer | None,
        extra: Buffer | None,
        packed: Buffer,
        index: Expr,
    ) -> None:
        if extra is not None and self.residual is not None:
            ptx.load_global(extra, 0, 4, self.residual.ptr_to([index]))
        with ptx.unrolled(VECTOR // 2) as pair:
            added = [None, None] if extra is None else ptx.unpack_half2(extra[pair])
            results = []
            for i in range(2):
                value = values[pair * 2 + i]
                if biases is not None:
                    value = value + biases[pair * 2 + i]
                if added[i] is not None:
                    value = value + added[i]
                results.append(ptx.activate(value, self.epilogue.activation))
            T.buffer_store(packed, ptx.pack_half2(*results), [pair])
        ptx.store_global(self.out.ptr_to([index]), packed, 0)


def _stage_sums(thread: Thread) -> None:
    """Register i of an instruction holds channel lane / 4 + 8 (i / 2), pixel 2 (lane % 4) + i % 2.

    (PTX ISA 9.0, 9.7.14.5.8: the C fragment.)
    """
    gemm, lane = thread.gemm, thread.lane
    config = gemm.config
    channel = T.bind(thread.warp_row * config.warp_channels + lane // 4)
    pixel = T.bind(thread.warp_column * config.warp_pixels + lane % 4 * 2)
    with ptx.unrolled(config.rows) as row:
        with ptx.unrolled(config.columns) as column:
            for i in range(4):
                at = (pixel + column * PIXELS + i % 2) * gemm.pitch
                at = at + channel + row * ROWS + i // 2 * 8
                value = thread.sums[(row * config.columns + column) * 4 + i]
                ptx.store_shared(thread.shared.ptr_to([at]), value)


def _part_at(thread: Thread, split: Expr, instruction: Expr) -> Expr:
    _, tiles, instructions, threads, _ = thread.gemm.scratch_shape
    index = (split * tiles + thread.block) * instructions + instruction
    return (index * threads + thread.index) * 4


def save_part(scratch: Buffer, thread: Thread, split: Expr) -> None:
    """Write the sums of one part of the depth as they are; neighbouring threads side by side."""
    with ptx.unrolled(thread.gemm.scratch_shape[2]) as instruction:
        at = _part_at(thread, split, instruction)
        ptx.store_global(scratch.ptr_to([at]), thread.sums, instruction * 4)


def load_parts(scratch: Buffer, thread: Thread) -> None:
    """The sums of all parts, added in order, so that results do not depend on the schedule."""
    splits, _, instructions, _, _ = thread.gemm.scratch_shape
    part = ptx.registers("part", 4, "float32")
    thread.clear()
    with T.serial(0, splits) as split:
        with ptx.unrolled(instructions) as instruction:
            at = _part_at(thread, split, instruction)
            ptx.load_global(part, 0, 4, scratch.ptr_to([at]))
            with ptx.unrolled(4) as i:
                index = instruction * 4 + i
                T.buffer_store(thread.sums, thread.sums[index] + part[i], [index])
