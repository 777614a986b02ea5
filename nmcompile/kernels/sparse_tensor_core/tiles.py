"""Tiles of the implicit GEMM, and what they make of a convolution.

Rows of the product are output channels (their weights are the sparse operand), columns are output
pixels of the whole batch, and the depth runs over (tap, input channel). A thread block computes one
tile of rows x columns, 64 of the depth at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nmcompile.kernels.sparse_tensor_core.gpus import KIB, Gpu
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity.tensor_core import COLUMNS, LANES, ROWS

VECTOR = 8  # float16 elements of a 16-byte copy: channels in memory are padded to a multiple
DEPTH = COLUMNS  # columns of a stage; 64 float16 are the 128 bytes that the swizzle permutes
PIXELS = 8  # output pixels of one instruction; of `wgmma`, of one part of its sums
WARPGROUP = 64  # output channels of one `wgmma`, by four warps
SWIZZLE_BYTES = 1024  # after which the permutation of the 16-byte vectors repeats
MAX_WINDOW = 16  # a bit per kernel row and column in one register
MAX_ELEMENTS = 2**31 - 1  # addresses are 32-bit counts of elements

Method = Literal["dense", "sparse", "wgmma"]
"""`mma.sync`, `mma.sp`, or Hopper's `wgmma.mma_async.sp`, which reads pixels from shared memory."""


@dataclass(frozen=True)
class TileConfig:
    """One tile variant.

    channels: output channels of a thread block. 128 reuse each activation most; 64 and 32 fit
        layers with few channels.
    pixels: output pixels of a thread block; the larger, the less often weights are fetched, the
        smaller, the more blocks a small image gives.
    warps: along (channels, pixels). 64 x 32 of the product per warp hold 64 registers of sums,
        which leaves two blocks of 8 warps per SM; 64 x 64 read shared memory less often, at one.
    stages: slices of 64 of the depth that are in flight or in use; more of them hide more latency
        and take more shared memory.
    resident: thread blocks that share one SM; bounds the registers of a thread to
        65536 / (threads * resident).
    splits: parts of the depth that different thread blocks sum up (split-K), 1 for none: where
        there are fewer tiles than SMs. A second launch adds the parts in order.
    """

    channels: int
    pixels: int
    warps: tuple[int, int]
    stages: int
    resident: int
    splits: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps[0] * self.warps[1] * LANES

    @property
    def warp_channels(self) -> int:
        """Output channels of a warp."""
        return self.channels // self.warps[0]

    @property
    def warp_pixels(self) -> int:
        """Output pixels of a warp."""
        return self.pixels // self.warps[1]

    @property
    def rows(self) -> int:
        """Instructions of a warp along the output channels."""
        return self.warp_channels // ROWS

    @property
    def columns(self) -> int:
        """Instructions of a warp along the pixels."""
        return self.warp_pixels // PIXELS


# Sized so that `resident` blocks fit the 164 KiB of an A100's SM.
_SPARSE: tuple[TileConfig, ...] = (
    TileConfig(128, 256, (2, 4), stages=3, resident=1),
    TileConfig(128, 128, (2, 4), stages=3, resident=2),
    TileConfig(128, 128, (2, 2), stages=3, resident=2),
    TileConfig(128, 64, (2, 2), stages=4, resident=2),
    TileConfig(64, 128, (1, 4), stages=3, resident=2),
    TileConfig(64, 64, (2, 2), stages=4, resident=3),
    TileConfig(64, 32, (2, 2), stages=4, resident=4),
    TileConfig(32, 128, (1, 4), stages=3, resident=2),
)

# Dense weights take 1.8 times the room: fewer stages.
_DENSE: tuple[TileConfig, ...] = (
    TileConfig(128, 256, (2, 4), stages=3, resident=1),
    TileConfig(128, 128, (2, 2), stages=2, resident=2),
    TileConfig(128, 64, (2, 2), stages=3, resident=2),
    TileConfig(64, 128, (1, 4), stages=3, resident=2),
    TileConfig(64, 64, (2, 2), stages=3, resident=3),
    TileConfig(64, 32, (2, 2), stages=3, resident=4),
    TileConfig(32, 128, (1, 4), stages=3, resident=2),
)

# For the 228 KiB of an H100's SM. A warp has 16 rows of its group's 64 and all pixels.
_WGMMA: tuple[TileConfig, ...] = (
    TileConfig(128, 256, (8, 1), stages=4, resident=1),
    TileConfig(128, 128, (8, 1), stages=4, resident=2),
    TileConfig(128, 64, (8, 1), stages=4, resident=2),
    TileConfig(64, 256, (4, 1), stages=3, resident=2),
    TileConfig(64, 128, (4, 1), stages=3, resident=3),
    TileConfig(64, 64, (4, 1), stages=4, resident=4),
)

# For the 100 KiB of an A10's or L4's SM: fewer stages and fewer blocks, and none of 256 pixels,
# whose sums alone would take 132 KiB on their way out.
_SPARSE_SMALL: tuple[TileConfig, ...] = (
    TileConfig(128, 128, (2, 4), stages=3, resident=1),
    TileConfig(128, 64, (2, 2), stages=2, resident=2),
    TileConfig(64, 128, (1, 4), stages=2, resident=2),
    TileConfig(64, 64, (2, 2), stages=3, resident=2),
    TileConfig(64, 32, (2, 2), stages=3, resident=3),
    TileConfig(32, 128, (1, 4), stages=2, resident=2),
)

_DENSE_SMALL: tuple[TileConfig, ...] = (
    TileConfig(128, 128, (2, 4), stages=3, resident=1),
    TileConfig(128, 64, (2, 2), stages=2, resident=2),
    TileConfig(64, 128, (1, 4), stages=2, resident=2),
    TileConfig(64, 64, (2, 2), stages=3, resident=2),
    TileConfig(64, 32, (2, 2), stages=2, resident=4),
    TileConfig(32, 128, (1, 4), stages=2, resident=2),
)

_LARGE_SM = 164 * KIB  # of shared memory, from which on the first lists fit

_TILES: dict[Method, tuple[TileConfig, ...]] = {
    "dense": _DENSE,
    "sparse": _SPARSE,
    "wgmma": _WGMMA,
}
_SMALL_TILES: dict[Method, tuple[TileConfig, ...]] = {
    "dense": _DENSE_SMALL,
    "sparse": _SPARSE_SMALL,
    "wgmma": (),
}


def tiles_of(method: Method, gpu: Gpu) -> tuple[TileConfig, ...]:
    """The variants sized for the SMs of an architecture."""
    return (_TILES if gpu.shared_bytes >= _LARGE_SM else _SMALL_TILES)[method]


@dataclass(frozen=True)
class Gemm:
    """A convolution cut into the tiles of one variant; all counts follow from its fields."""

    conv: Conv2d
    config: TileConfig
    method: Method

    @property
    def sparse(self) -> bool:
        """Whether weights are stored as two of every four."""
        return self.method != "dense"

    @property
    def in_channels(self) -> int:
        """Input channels in memory."""
        return padded(self.conv.in_channels)

    @property
    def out_channels(self) -> int:
        """Output channels in memory."""
        return padded(self.conv.out_channels)

    @property
    def vectors(self) -> int:
        """16-byte vectors of one pixel of the input."""
        return self.in_channels // VECTOR

    @property
    def depth(self) -> int:
        """Columns of the packed weights: (tap, input channel), rounded up to whole slices."""
        return self.slices * DEPTH

    @property
    def slices(self) -> int:
        """Stages that one tile's whole depth takes."""
        return -(-self.conv.taps * self.in_channels // DEPTH)

    @property
    def split_slices(self) -> int:
        """Slices of all splits but the last, which may have fewer."""
        return -(-self.slices // self.config.splits)

    @property
    def pixels(self) -> int:
        """Output pixels of the whole batch."""
        return self.conv.batch * self.conv.out_pixels

    @property
    def channel_tiles(self) -> int:
        """Tiles along the output channels."""
        return -(-self.conv.out_channels // self.config.channels)

    @property
    def pixel_tiles(self) -> int:
        """Tiles along the pixels."""
        return -(-self.pixels // self.config.pixels)

    @property
    def tiles(self) -> int:
        """Thread blocks of one split."""
        return self.channel_tiles * self.pixel_tiles

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of one slice; of two kept elements in four, and their positions."""
        dense = self.config.channels * DEPTH * 2
        return dense * 9 // 16 if self.sparse else dense

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels of one slice: a row of 128 for each."""
        return self.config.pixels * DEPTH * 2

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage: pixels, at multiples of 1024 for `wgmma`, then weights."""
        multiple = SWIZZLE_BYTES if self.method == "wgmma" else 1
        return -(-(self.pixel_bytes + self.weight_bytes) // multiple) * multiple

    @property
    def shared_align(self) -> int:
        """Bytes that the address of the first stage is a multiple of."""
        return SWIZZLE_BYTES if self.method == "wgmma" else 128

    @property
    def pitch(self) -> int:
        """Floats from one pixel to the next where the sums are staged for the output.

        4 more than the channels: the 32 lanes that store one register then hit 32 banks.
        """
        return self.config.channels + 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a thread block: the stages, later the sums."""
        sums = self.config.pixels * self.pitch * 4
        return max(self.config.stages * self.stage_bytes, sums)

    @property
    def scratch_shape(self) -> tuple[int, int, int, int, int]:
        """Partial sums, float32: (split, tile, instruction, thread, register)."""
        config = self.config
        return (config.splits, self.tiles, config.rows * config.columns, config.threads, 4)


def padded(channels: int) -> int:
    """Channels of an activation in memory: a multiple of 8, so that pixels begin at 16 bytes."""
    return -(-channels // VECTOR) * VECTOR
