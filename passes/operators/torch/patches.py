"""Images cut into patches, and put together of them, where patches do not overlap."""

from collections.abc import Sequence

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_patches(graph: FxGraph, node: fx.Node) -> str | None:
    """Columns of an image's patches, or the image of them, as a permutation of axes.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    cuts = node.target is aten.im2col.default
    columns = graph.shape(node if cuts else given["self"])
    image = graph.shape(given["self"] if cuts else node)
    if columns is None or image is None or len(image) != 4:
        return "its input is no batch of images of fixed shape"
    height, width = _pair(given["kernel_size"])
    apart = _pair(given["stride"]) == (height, width) and _pair(given["dilation"]) == (1, 1)
    batch, channels, rows, across = image
    if not apart or _pair(given["padding"]) != (0, 0) or rows % height or across % width:
        return "its patches overlap, or do not cover the image"
    down, along = rows // height, across // width
    new = Replacement(graph, node)
    if cuts:
        shape = [batch, channels, down, height, along, width]
        order, result = [0, 1, 3, 5, 2, 4], columns
    else:
        shape = [batch, channels, height, width, down, along]
        order, result = [0, 1, 4, 2, 5, 3], image
    split = new.add(aten.reshape.default, given["self"], shape)
    moved = new.add(aten.permute.default, split, order)
    new.finish(new.add(aten.reshape.default, moved, list(result)))
    return None


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    """Torch takes one number for both."""
    return (sizes[0], sizes[-1])
