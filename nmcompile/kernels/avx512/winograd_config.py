"""Sizes of a Winograd convolution, and their ranking by counted cycles."""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel_config import Panel, PanelConfig
from nmcompile.kernels.avx512.winograd_transforms import WINDOW
from nmcompile.kernels.spec import Conv2d


@dataclass(frozen=True)
class WinogradConfig:
    """Tile sizes of one Winograd convolution.

    side: pixels m of the m x m outputs that one Winograd tile computes.
    rows: rows of tiles per block; all of them where `images` is above one.
    images: images of a batch per block.
    vectors: vectors of 16 tiles whose sums are in registers together.
    outputs: output channels whose sums are.
    list_outputs: output channels that share a list; a multiple of `outputs`.
    dense: whether there are no lists, because all weights are kept.
    split_blocks: whether threads share the blocks, each with its own scratch memory, or the steps
        within every block.
    """

    side: int
    rows: int
    images: int
    vectors: int
    outputs: int
    list_outputs: int
    dense: bool
    split_blocks: bool


@dataclass(frozen=True)
class Tiling:
    """The Winograd tiles of a convolution, in blocks."""

    conv: Conv2d
    config: WinogradConfig

    @property
    def span(self) -> int:
        """Input pixels under a tile, per side."""
        return self.config.side + WINDOW - 1

    @property
    def positions(self) -> int:
        """Products per tile, and matrices of transformed weights."""
        return self.span**2

    @property
    def height(self) -> int:
        """Rows of tiles of one image."""
        return -(-self.conv.out_height // self.config.side)

    @property
    def width(self) -> int:
        """Tiles per row."""
        return -(-self.conv.out_width // self.config.side)

    @property
    def image_tiles(self) -> int:
        """Tiles of one image in one block."""
        return self.config.rows * self.width

    @property
    def image_vectors(self) -> int:
        """Vectors over them, the last one padded."""
        return -(-self.image_tiles // LANES)

    @property
    def vectors(self) -> int:
        """Vectors of a row of transformed values: the tiles of all images of a block."""
        return -(-self.image_tiles * self.config.images // LANES)

    @property
    def row_blocks(self) -> int:
        """Blocks of one image."""
        return -(-self.height // self.config.rows)

    @property
    def blocks(self) -> int:
        """Blocks of the whole batch."""
        return self.row_blocks * -(-self.conv.batch // self.config.images)

    @property
    def lists(self) -> int:
        """Lists of output channels; the last one may be padded."""
        return -(-self.conv.out_channels // self.config.list_outputs)

    @property
    def shapes(self) -> list[tuple[Panel, int, int]]:
        """(shape, how many, first vector) of the runs of vectors that fit the registers."""
        full, rest = divmod(self.vectors, self.config.vectors)
        found = []
        for vectors, count, first in ((self.config.vectors, full, 0), (rest, 1, full)):
            if vectors and count:
                panel = Panel(vectors * LANES, vectors, 0)
                found.append((panel, count, first * self.config.vectors))
        return found

    @property
    def tile_conv(self) -> Conv2d:
        """One channel of the input as a convolution whose output pixels are the tiles."""
        conv, side = self.conv, self.config.side
        top, left, _, _ = conv.padding
        bottom = (self.height - 1) * side + self.span - conv.in_height - top
        right = (self.width - 1) * side + self.span - conv.in_width - left
        return Conv2d(
            1, 1, conv.in_height, conv.in_width, 1,
            (self.span, self.span), (side, side), (top, left, bottom, right),
        )  # fmt: skip

    @property
    def products(self) -> PanelConfig:
        """One position's matrix product, as a 1x1 panel convolution."""
        return self._panel_config(1)

    @property
    def windows(self) -> PanelConfig:
        """The order in which an artifact keeps the weights: windows that are not transformed."""
        return self._panel_config(WINDOW**2)

    def _panel_config(self, run: int) -> PanelConfig:
        config = self.config
        return PanelConfig(
            lists="dense" if config.dense else "shared",
            tile=config.vectors,
            outputs=config.outputs,
            list_outputs=config.list_outputs,
            run=run,
            block_channels=self.conv.in_channels,
            chunks=1,
        )
