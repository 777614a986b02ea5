"""Everything in a graph that `settle` would refuse, with the sentence that says why."""

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.settle import doubt, rewrite, title_of

KNOWN = "expected tensors of fixed shapes, found"


def refusals(graph: OnnxGraph) -> dict[int, str]:
    """Why nodes cannot be compiled, by their positions in the main graph; leaves it as it is.

    A node that is rewritten as several is refused if one of these is. So is what reads or makes a
    tensor whose shape depends on values, has no elements, or is no tensor.
    """
    copy = graph.copy()
    # Which node of the original each one of the copy stands for.
    origins = {node: index for index, node in enumerate(copy.model.graph)}
    found: dict[int, str] = {}
    copy.fold_constants()
    while (node := _next_doubtful(copy, origins, found)) is not None:
        index, before = origins[node], set(copy.model.graph)
        reason = rewrite(copy, node, doubt(copy, node) or "")
        if reason is not None:
            found[index] = reason
        for new in copy.model.graph:
            if new not in before:
                origins[new] = index
    for node in copy.model.graph:
        index = origins[node]
        if index not in found and (reason := _unknown(copy, node)) is not None:
            found[index] = f"{title_of(node)}: {reason}"
    return found


def _next_doubtful(
    graph: OnnxGraph, origins: dict[ir.Node, int], found: dict[int, str]
) -> ir.Node | None:
    for node in graph.model.graph:
        if origins[node] not in found and doubt(graph, node) is not None:
            return node
    return None


def _unknown(graph: OnnxGraph, node: ir.Node) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is None or not value.name or graph.is_constant(value):
            continue
        if not isinstance(value.type, ir.TensorType | None):
            return f"expected tensors, found {value.name}, a sequence or an optional"
        shape = graph.shape(value)
        if shape is None:
            return f"{KNOWN} {value.name}, whose shape depends on values that the model computes"
        if 0 in shape:
            return f"{KNOWN} {value.name} of shape {shape}"
        if graph.dtype(value) is None:
            return f"{KNOWN} {value.name} of an unknown type"
    return None
