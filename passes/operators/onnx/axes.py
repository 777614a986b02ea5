"""Axes that ONNX's own function bodies write as single numbers, as lists."""

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.limits import operand


def list_axes(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Make a constant of rank 0 in the place of the axes one of rank 1.

    Returns:
        None, or the reason why that cannot be done.
    """
    axes = operand(node, 1)
    known = None if axes is None else graph.constant(axes)
    if axes is None or known is None or known.ndim:
        return "its axes are no single number"
    node.replace_input_with(1, graph.new_constant(str(axes.name), known.reshape(1)))
    return None
