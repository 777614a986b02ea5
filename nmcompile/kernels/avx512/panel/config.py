"""Sizes of a panel convolution, shared by the tiling, the packer and the emitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.spec import Conv2d

MAX_EXTRA = 2  # pixels behind the last full vector that are worth single accumulators
TAILS = (4, 8)  # lanes of narrow last vectors
TAIL_GAIN = 0.4  # of a vector


@dataclass(frozen=True)
class Grouped:
    """Lists of an N:M pattern: `n` rows of every `m` consecutive panel rows.

    step: list entries of one iteration; a multiple of n that divides the entries of a block.
    taps_first: panel rows are ordered (tap, channel), as groups along input channels want them,
        instead of (channel, tap).
    """

    n: int
    m: int
    step: int
    taps_first: bool

    @property
    def bits(self) -> int:
        """Bits of one position within a group."""
        return max(1, (self.m - 1).bit_length())

    @property
    def steps_per_word(self) -> int:
        """Iterations whose positions fit one 64-bit word."""
        return 64 // (self.bits * self.step)


@dataclass(frozen=True)
class PanelConfig:
    """Tile sizes of one panel convolution.

    lists: how output channels find their panel rows: "dense" reads all; with "shared" lists
        `list_outputs` channels read the same (1xN); with "private" ones every channel has its own
        (unstructured), with "grouped" ones its own of a fixed length (N:M).
    tile: vectors of 16 output pixels per tile.
    outputs: output channels accumulated together in registers.
    list_outputs: output channels per list, a multiple of `outputs`; 1 for private and grouped.
    run: consecutive panel rows that one entry of a shared list stands for.
    block_channels: input channels whose rows lie in the panel at once.
    chunks: parts into which the output channels are split for threads and caches.
    grouped: the pattern, for grouped lists.
    """

    lists: Literal["dense", "shared", "private", "grouped"]
    tile: int
    outputs: int
    list_outputs: int
    run: int
    block_channels: int
    chunks: int
    grouped: Grouped | None = None

    @property
    def own_lists(self) -> bool:
        """Whether each output channel has its own list."""
        return self.lists in ("private", "grouped")

    @property
    def lane_outputs(self) -> int:
        """Output channels that one step of the list loop finishes."""
        return self.outputs if self.own_lists else self.list_outputs

    @property
    def taps_first(self) -> bool:
        """Order of the panel rows: (tap, channel) instead of (channel, tap)."""
        return self.grouped is not None and self.grouped.taps_first


@dataclass(frozen=True)
class PackedSizes:
    """Lengths of the packed arrays, which are part of the compiled function's type.

    scattered: whether `order` is of single output channels, where it would be of shared lists.
    """

    values: int
    indices: int
    starts: int
    order: int = 0
    scattered: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel under a tile of `pixels` output pixels.

    vectors: full or partial vectors of 16 pixels per row.
    extra: pixels behind them that are kept as single floats.
    tail: lanes of the last vector: 16, or 8 or 4 where no more are needed, which takes half the
        time where 512-bit operations take two cycles (Zen 4).
    """

    pixels: int
    vectors: int
    extra: int
    tail: int = LANES

    @property
    def widths(self) -> list[int]:
        """Lanes of each vector."""
        return [LANES] * (self.vectors - 1) + [self.tail]

    @property
    def cost(self) -> float:
        """Time of the vectors, in whole ones."""
        return self.vectors - (TAIL_GAIN if self.tail < LANES else 0.0)

    @property
    def stride(self) -> int:
        """Floats from one row to the next, whole cache lines."""
        return (self.vectors + (self.extra > 0)) * LANES


def blocks_of(conv: Conv2d, config: PanelConfig) -> int:
    """Blocks of input channels per group."""
    return -(-conv.group_in // config.block_channels)


def lists_of(conv: Conv2d, config: PanelConfig) -> int:
    """Steps of the list loop per group, all chunks together."""
    return -(-conv.group_out // (config.lane_outputs * config.chunks)) * config.chunks


def entries_of(conv: Conv2d, config: PanelConfig) -> int:
    """Entries of one grouped list in one block."""
    assert config.grouped is not None
    return config.block_channels * conv.taps // config.grouped.m * config.grouped.n


def words_of(conv: Conv2d, config: PanelConfig) -> int:
    """64-bit words of positions of one grouped list in one block."""
    assert config.grouped is not None
    steps = entries_of(conv, config) // config.grouped.step
    return -(-steps // config.grouped.steps_per_word)


def tile_shapes(pixels: int, tile: int, extras: bool) -> list[Panel]:
    """The tiles of one image: equal ones of `tile` vectors, then what is left.

    With `extras`, one or two pixels that are left join the tile before them.
    """

    def padded(pixels: int) -> Panel:
        left = pixels % LANES or LANES
        narrow = next((lanes for lanes in TAILS if left <= lanes), LANES)
        return Panel(pixels, -(-pixels // LANES), 0, narrow)

    size = tile * LANES
    full, rest = divmod(pixels, size)
    shapes = [Panel(size, tile, 0)] * full
    if not rest:
        return shapes
    vectors, extra = divmod(rest, LANES)
    if not extras or not 0 < extra <= MAX_EXTRA:
        return [*shapes, padded(rest)]
    if vectors:
        return [*shapes, Panel(rest, vectors, extra)]
    if full:
        return [*shapes[:-1], Panel(size + rest, tile, extra)]
    return [padded(rest)]


def work_order(shapes: list[Panel]) -> list[Panel]:
    """The tiles of `tile_shapes` in the order in which threads get them: what was left, then those.

    A thread has a run of consecutive items, the first thread the longest: with the light one in
    front, seven tiles over 12.25 vectors go to two threads as 6.25 : 6 and not as 8 : 4.25.
    """
    return [shapes[-1], *shapes[:-1]]
