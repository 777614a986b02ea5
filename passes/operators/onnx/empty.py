"""Tensors without elements, as ONNX's own function bodies split them off and join them again."""

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement


def drop_empty(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Leave out of a Concat what has no elements; make a Split of one part with any a copy.

    Returns:
        None, or the reason why that cannot be done.
    """
    if node.op_type == "Concat":
        kept = [value for value in node.inputs if value is not None and not _empty(graph, value)]
        if not kept:
            return "all of its inputs are without elements"
        new = Replacement(graph, node)
        axis = node.attributes["axis"].as_int()
        new.finish(new.add("Concat", *kept, axis=axis) if len(kept) > 1 else kept[0])
        return None
    filled = [value for value in node.outputs if not _empty(graph, value)]
    empty = [value for value in node.outputs if _empty(graph, value)]
    if len(filled) != 1:
        return "it has several parts with elements"
    for value in empty:
        readers = {use.node for use in value.uses()}
        if value.is_graph_output() or any(reader.op_type != "Concat" for reader in readers):
            return f"{value.name}, which has no elements, is read"
        for reader in readers:
            reason = drop_empty(graph, reader)
            if reason is not None:
                return reason
    graph.replace(filled[0], node.inputs[0])
    graph.sweep()
    return None


def _empty(graph: OnnxGraph, value: ir.Value) -> bool:
    return 0 in (graph.shape(value) or ())
