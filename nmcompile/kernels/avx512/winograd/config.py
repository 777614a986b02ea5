"""Sizes of a Winograd convolution, shared by its tiling, its packer and its emitter."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel.config import Panel, PanelConfig, tile_shapes
from nmcompile.kernels.avx512.winograd.transforms import SIDES
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


def sides_of(conv: Conv2d) -> tuple[int, ...]:
    """Output pixels per side of the tiles that can compute a convolution; none if none can."""
    if conv.kernel[0] != conv.kernel[1] or conv.stride[0] != conv.stride[1]:
        return ()
    if conv.dilation != (1, 1) or conv.groups > 1:
        return ()
    return SIDES.get((conv.kernel[0], conv.stride[0]), ())


@dataclass(frozen=True)
class Tiling:
    """The Winograd tiles of a convolution, in blocks."""

    conv: Conv2d
    config: WinogradConfig

    @property
    def stride(self) -> int:
        """Of the convolution; its square is the number of phases of the image."""
        return self.conv.stride[0]

    @property
    def phases(self) -> int:
        """Channels of stride 1 that one input channel becomes."""
        return self.stride**2

    @property
    def window(self) -> int:
        """Taps of one phase, per side."""
        return -(-self.conv.kernel[0] // self.stride)

    @property
    def span(self) -> int:
        """Pixels of one phase under a tile, per side."""
        return self.config.side + self.window - 1

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
    def padded_outputs(self) -> int:
        """Output channels of all lists."""
        return self.lists * self.config.list_outputs

    @property
    def shapes(self) -> list[tuple[Panel, int, int]]:
        """(shape, how many, first vector) of the runs of vectors that fit the registers."""
        shapes = tile_shapes(self.image_tiles * self.config.images, self.config.vectors, False)
        found: list[tuple[Panel, int, int]] = []
        for index, shape in enumerate(shapes):
            if found and found[-1][0] == shape:
                panel, count, first = found[-1]
                found[-1] = (panel, count + 1, first)
            else:
                found.append((shape, 1, index * self.config.vectors))
        return found

    def tile_conv(self, row: int, column: int) -> Conv2d:
        """One phase of one input channel as a convolution whose output pixels are the tiles."""
        conv, stride = self.conv, self.stride
        step, reach = stride * self.config.side, stride * (self.span - 1) + 1
        top, left = conv.padding[0] - row, conv.padding[1] - column
        bottom = (self.height - 1) * step + reach - conv.in_height - top
        right = (self.width - 1) * step + reach - conv.in_width - left
        return Conv2d(
            1, 1, conv.in_height, conv.in_width, 1, (self.span, self.span),
            (step, step), (top, left, bottom, right), (stride, stride),
        )  # fmt: skip

    def transformed(self, windows: int) -> int:
        """Floats of transformed weights for so many of packed windows; none is one, as there."""
        return max(1, windows // self.conv.taps * self.phases * self.positions)

    @property
    def of_weights(self) -> Tiling:
        """The same without what makes no difference to weights: images, and how they are tiled."""
        conv, config = self.conv, self.config
        window = Conv2d(1, 1, *conv.kernel, 1, conv.kernel, conv.stride)
        return Tiling(window, replace(config, rows=1, images=1, vectors=1, split_blocks=False))

    @property
    def products(self) -> PanelConfig:
        """One position's matrix product, as a panel convolution of windows of all phases."""
        return self._panel_config(self.phases)

    @property
    def windows(self) -> PanelConfig:
        """The order in which an artifact keeps the weights: windows that are not transformed."""
        return self._panel_config(self.conv.taps)

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
