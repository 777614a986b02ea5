"""Positions counted from the end, which TVM's importer takes for others."""

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_select(graph: FxGraph, node: fx.Node) -> str | None:
    """One element along an axis, counted from the front.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    shape = graph.shape(given["self"])
    if shape is None:
        return "its input has no fixed shape"
    new, index = Replacement(graph, node), given["index"] + shape[given["dim"]]
    new.finish(new.add(aten.select.int, given["self"], given["dim"], index))
    return None


def rewrite_index(graph: FxGraph, node: fx.Node) -> str | None:
    """Indices along one axis, counted from the front, as a flat list of them and a reshape.

    Returns:
        None, or the reason why that cannot be done.
    """
    data, indices = arguments_of(node)["self"], arguments_of(node)["indices"]
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    shape, result = graph.shape(data), graph.shape(node)
    if len(given) != 1 or shape is None or result is None:
        return "its indices are along several axes, or a shape is not fixed"
    ((axis, index),) = given
    if graph.dtype(index) not in ("int32", "int64"):
        return "its indices are no whole numbers"
    new = Replacement(graph, node)
    behind = new.add(aten.add.Scalar, index, shape[axis])
    front = new.add(aten.where.self, new.add(aten.lt.Scalar, index, 0), behind, index)
    flat = new.add(aten.reshape.default, front, [-1])
    taken = new.add(aten.index_select.default, data, axis, flat)
    new.finish(new.add(aten.reshape.default, taken, list(result)))
    return None
