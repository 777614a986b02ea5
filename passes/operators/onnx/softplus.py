"""Softplus without the loss of digits that log(1 + exp(x)) has for very negative x."""

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement

TERMS = 8
"""Of the series of atanh; the next one is below 3e-9 of the sum for arguments up to 1/3."""


def rewrite_softplus(graph: OnnxGraph, node: ir.Node) -> str | None:
    """max(x, 0) + log1p(exp(-|x|)), with log1p(t) as 2 atanh(t / (2 + t)).

    Returns:
        None, or the reason why that cannot be done.
    """
    x = node.inputs[0]
    if x is None or graph.dtype(x) != "float32":
        return "it is not float32"
    new = Replacement(graph, node)

    def number(value: float) -> ir.Value:
        return new.constant(np.asarray(value, np.float32))

    t = new.add("Exp", new.add("Neg", new.add("Abs", x)))
    s = new.add("Div", t, new.add("Add", t, number(2)))
    square = new.add("Mul", s, s)
    series = number(1 / (2 * TERMS - 1))
    for power in range(2 * TERMS - 3, 0, -2):
        series = new.add("Add", new.add("Mul", square, series), number(1 / power))
    logarithm = new.add("Mul", new.add("Mul", s, number(2)), series)
    new.finish(new.add("Add", new.add("Relu", x), logarithm))
    return None
