"""Operators that choose by comparison, where TVM's importer multiplies or forgets about NaN."""

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement
from nmcompile.passes.operators.onnx.limits import attribute

NOT_FLOAT = "it is not float32"


def rewrite_sign(graph: OnnxGraph, node: ir.Node) -> str | None:
    """1 where x > 0, else -1 where x < 0, else x: that is 0 or NaN.

    Returns:
        None, or the reason why that cannot be done.
    """
    x = node.inputs[0]
    if x is None or graph.dtype(x) != "float32":
        return NOT_FLOAT
    new = Replacement(graph, node)
    zero, one, minus = (_number(new, value) for value in (0, 1, -1))
    below = _where(new, new.add("Less", x, zero), minus, x)
    new.finish(_where(new, new.add("Greater", x, zero), one, below))
    return None


def rewrite_threshold(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Where x > alpha, x, else 0.

    Returns:
        None, or the reason why that cannot be done.
    """
    x = node.inputs[0]
    if x is None or graph.dtype(x) != "float32":
        return NOT_FLOAT
    new = Replacement(graph, node)
    above = new.add("Greater", x, _number(new, attribute(node, "alpha", 1.0)))
    new.finish(_where(new, above, x, _number(new, 0)))
    return None


def _number(new: Replacement, value: float) -> ir.Value:
    return new.constant(np.asarray(value, np.float32))


def _where(new: Replacement, condition: ir.Value, first: ir.Value, second: ir.Value) -> ir.Value:
    condition.type = ir.TensorType(ir.DataType.BOOL)
    chosen = new.add("Where", condition, first, second)
    chosen.type = first.type
    return chosen
