"""Convolutions along one axis or three, and transposed ones, as those that kernels are for."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.graphs.onnx.planar import read_planar
from nmcompile.passes.graphs.planar import Pair, Piece
from nmcompile.passes.operators.onnx.editing import Replacement


def rewrite_planar(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Put a plain convolution, or one for each phase, in the place of a node.

    Returns:
        None, or "" where there are none: what else is wrong with the node says it all.
    """
    form = read_planar(node, graph.constant, graph.shape)
    if form is None or node.inputs[0] is None:
        return ""
    new = Replacement(graph, node)
    new.finish(form.write(node.inputs[0], _Writer(new)))
    return None


class _Writer:
    def __init__(self, new: Replacement) -> None:
        self._new = new

    def conv(self, x: ir.Value, piece: Piece) -> ir.Value:
        bias = [] if piece.bias is None else [self._new.constant(piece.bias)]
        return self._new.add(
            "Conv",
            x,
            self._new.constant(piece.weight),
            *bias,
            strides=piece.conv.stride,
            pads=piece.conv.padding,
            dilations=piece.conv.dilation,
            group=piece.conv.groups,
        )

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._new.add("Add", a, b)

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        return self._new.add("Concat", *parts, axis=axis)

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._new.add("Reshape", x, self._numbers(*shape))

    def permute(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        return self._new.add("Transpose", x, perm=order)

    def pad(self, x: ir.Value, ends: Sequence[Pair]) -> ir.Value:
        return self._new.add("Pad", x, self._new.constant(np.array(ends, np.int64).T.reshape(-1)))

    def narrow(self, x: ir.Value, axis: int, start: int, length: int, step: int) -> ir.Value:
        ends = (start, start + length, axis, step)
        return self._new.add("Slice", x, *(self._numbers(number) for number in ends))

    def _numbers(self, *numbers: int) -> ir.Value:
        return self._new.constant(np.array(numbers, np.int64))
