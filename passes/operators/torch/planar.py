"""Convolutions along one axis or three, and transposed ones, as those that kernels are for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.graphs.fx.planar import read_planar
from nmcompile.passes.graphs.planar import Pair, Piece
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_planar(graph: FxGraph, node: fx.Node) -> str | None:
    """Put a plain convolution, or one for each phase, in the place of a node.

    Returns:
        None, or "" where there are none: what else is wrong with the node says it all.
    """
    form = read_planar(node, graph.constant, graph.shape)
    if form is None:
        return ""
    new = Replacement(graph, node)
    new.finish(form.write(arguments_of(node)["input"], _Writer(new)))
    return None


class _Writer:
    def __init__(self, new: Replacement) -> None:
        self._new = new

    def conv(self, x: fx.Node, piece: Piece) -> fx.Node:
        top, left, bottom, right = piece.conv.padding
        padding = [top, left]
        if (top, left) != (bottom, right):  # which the lowering takes into the convolution
            x = self._new.add(aten.constant_pad_nd.default, x, [left, right, top, bottom])
            padding = [0, 0]
        weight = self._new.constant(np.ascontiguousarray(piece.weight))
        bias = None if piece.bias is None else self._new.constant(np.array(piece.bias))
        geometry = (list(piece.conv.stride), padding, list(piece.conv.dilation), piece.conv.groups)
        return self._new.add(aten.conv2d.default, x, weight, bias, *geometry)

    def add(self, a: fx.Node, b: fx.Node) -> fx.Node:
        return self._new.add(aten.add.Tensor, a, b)

    def concat(self, parts: Sequence[fx.Node], axis: int) -> fx.Node:
        return self._new.add(aten.cat.default, list(parts), axis)

    def reshape(self, x: fx.Node, shape: Sequence[int]) -> fx.Node:
        return self._new.add(aten.reshape.default, x, list(shape))

    def permute(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        return self._new.add(aten.permute.default, x, list(order))

    def pad(self, x: fx.Node, ends: Sequence[Pair]) -> fx.Node:
        innermost_first = [size for pair in reversed(ends) for size in pair]
        return self._new.add(aten.constant_pad_nd.default, x, innermost_first)

    def narrow(self, x: fx.Node, axis: int, start: int, length: int, step: int) -> fx.Node:
        return self._new.add(aten.slice.Tensor, x, axis, start, start + length, step)
