"""One slice of the depth: from a stage in shared memory to the sums in registers.

A stage holds the pixels, a row of 128 bytes each, whose 16-byte vectors are permuted by XOR with
the row's number modulo 8; then the weights of the slice as `pack_sparse` or `pack_dense` orders
them.
"""

from __future__ import annotations

from typing import Protocol

from nmcompile.kernels.prim_func import Buffer, Expr
from nmcompile.kernels.sparse_tensor_core import ptx
from nmcompile.kernels.sparse_tensor_core.epilogue import Thread
from nmcompile.kernels.sparse_tensor_core.tiles import DEPTH, PIXELS, VECTOR
from nmcompile.sparsity.tensor_core import LANES

ROW_WORDS = DEPTH * 2 // 4  # 32-bit words of one pixel in a stage
ROW_VECTORS = DEPTH // VECTOR
INSTRUCTION_BYTES = 64  # of a pixel's row that one sparse instruction reads: 32 columns


class Multiplier(Protocol):
    """What a thread does with a stage; the copies of the next one begin between two of the steps.

    Between `start` and `finish` lies other work, for instructions that run by themselves.
    """

    def publish(self) -> None:
        """Before the barrier: let the instructions of others see what this thread has copied."""

    def start(self, stage: Expr) -> None:
        """Behind the barrier; `stage` is the number of its first word."""

    def finish(self, stage: Expr) -> None:
        """When this returns, the stage is free and the sums hold its products."""


def multiplier(thread: Thread) -> Multiplier:
    """The way to multiply of the thread's tiles."""
    return Wgmma(thread) if thread.gemm.method == "wgmma" else Mma(thread)


class Mma:
    """`mma.sync` or `mma.sp`: both operands pass through registers."""

    def __init__(self, thread: Thread) -> None:
        config = thread.gemm.config
        self.thread, self.gemm, self.config = thread, thread.gemm, config
        self.left = ptx.registers("left", 4 * config.rows)
        self.right = ptx.registers("right", 4 * config.columns)
        self.positions = ptx.registers("positions", config.rows) if self.gemm.sparse else None

    def publish(self) -> None:
        """Nothing: the barrier is enough."""

    def start(self, stage: Expr) -> None:
        """Nothing: the copies go first, since they take longest to arrive."""

    def finish(self, stage: Expr) -> None:
        """32 columns of the depth at a time: one sparse or two dense instructions."""
        if self.positions is not None:
            load_positions(self.thread, stage, self.positions)
        for half in range(2):
            self._load_pixels(stage, half)
            for part in range(1 if self.gemm.sparse else 2):
                self._load_weights(stage, half if self.gemm.sparse else 2 * half + part)
                with ptx.unrolled(self.config.rows) as row:
                    with ptx.unrolled(self.config.columns) as column:
                        self._multiply_pair(self.thread.sums, row, column, half, part)

    def _multiply_pair(self, sums: Buffer, row: Expr, column: Expr, half: int, part: int) -> None:
        at = (row * self.config.columns + column) * 4
        if self.positions is None:
            right = column * 4 + part * 2
            ptx.multiply_dense(sums, at, self.left, row * 4, self.right, right)
            return
        meta = self.positions[row]
        ptx.multiply_sparse(sums, at, self.left, row * 4, self.right, column * 4, meta, half)

    def _load_pixels(self, stage: Expr, half: int) -> None:
        """The right fragments of 32 columns: lane l points to row l % 8 of vector l / 8."""
        thread, lane = self.thread, self.thread.lane
        vector = (lane // 8 + half * 4) ^ lane % 8
        with ptx.unrolled(self.config.columns) as column:
            row = thread.warp_column * self.config.warp_pixels + column * PIXELS + lane % 8
            at = stage + row * ROW_WORDS + vector * 4
            ptx.load_matrices(self.right, column * 4, thread.shared.ptr_to([at]))

    def _load_weights(self, stage: Expr, instruction: int) -> None:
        """The left fragments of one instruction per row."""
        with ptx.unrolled(self.config.rows) as row:
            load_weights(self.thread, stage, self.left, row, instruction)


class Wgmma:
    """`wgmma.mma_async.sp`: four warps multiply 64 rows of weights, which they hold in registers.

    The tensor cores read the pixels from shared memory themselves, in the permuted order ("128-byte
    swizzle"), and run on while the threads begin the next copies.
    """

    def __init__(self, thread: Thread) -> None:
        assert thread.gemm.config.rows == 1
        self.thread = thread
        self.left = ptx.registers("left", 8)
        self.positions = ptx.registers("positions", 1)

    def publish(self) -> None:
        """Tensor cores read shared memory through a path of their own."""
        ptx.fence_async_reads()

    def start(self, stage: Expr) -> None:
        """Two instructions of 32 columns."""
        thread = self.thread
        load_positions(thread, stage, self.positions)
        for half in range(2):
            load_weights(thread, stage, self.left, 0, half)
        ptx.fence_wgmma()
        for half in range(2):
            at = stage + half * INSTRUCTION_BYTES // 4
            pixels = thread.shared.ptr_to([at])
            columns = thread.gemm.config.pixels
            left = [self.left[half * 4 + i] for i in range(4)]
            ptx.multiply_group(thread.sums, columns, left, pixels, self.positions[0], half)
        ptx.commit_wgmma()

    def finish(self, stage: Expr) -> None:
        """Wait for the tensor cores."""
        ptx.wait_wgmma()


def load_positions(thread: Thread, stage: Expr, target: Buffer) -> None:
    """The metadata of a warp's rows, one register each, behind the kept elements."""
    gemm, config = thread.gemm, thread.gemm.config
    at = stage + (gemm.pixel_bytes + config.channels * DEPTH) // 4
    at = at + (thread.warp_row * LANES + thread.lane) * config.rows
    ptx.load_shared(target, 0, config.rows, thread.shared.ptr_to([at]))


def load_weights(thread: Thread, stage: Expr, target: Buffer, row: Expr, instruction: int) -> None:
    """The four registers of a row of instructions; to the place of the row or, alone, in order."""
    gemm, config = thread.gemm, thread.gemm.config
    per_row = 2 if gemm.sparse else 4
    fragment = (thread.warp_row * config.rows + row) * per_row + instruction
    at = stage + gemm.pixel_bytes // 4 + (fragment * LANES + thread.lane) * 4
    place = instruction if gemm.method == "wgmma" else row
    ptx.load_shared(target, place * 4, 4, thread.shared.ptr_to([at]))
