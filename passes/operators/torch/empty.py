"""Tensors without elements, as caches begin with."""

from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement


def drop_empty(graph: FxGraph, node: fx.Node) -> str | None:
    """Leave what has no elements out of a concatenation.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    kept = [source for source in given["tensors"] if 0 not in (graph.shape(source) or ())]
    if not kept or len(kept) == len(given["tensors"]):
        return "all of its operands are without elements" if not kept else ""
    if len({graph.dtype(source) for source in given["tensors"]}) > 1:
        return "its operands have several dtypes"
    new = Replacement(graph, node)
    new.finish(new.add(node.target, kept, given["dim"]) if len(kept) > 1 else kept[0])
    return None
