"""Positions and slices in forms that TVM's importer gets right."""

import math

import numpy as np
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
    """Indices along axes that follow each other, as a flat list of them and a reshape.

    Returns:
        None, or the reason why that cannot be done.
    """
    data, indices = arguments_of(node)["self"], arguments_of(node)["indices"]
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    shape, result = graph.shape(data), graph.shape(node)
    first, last = given[0][0], given[-1][0]
    if len(given) != last - first + 1 or shape is None or result is None:
        return "its indices are along axes with others between them, or a shape is not fixed"
    if any(graph.dtype(index) not in ("int32", "int64") for _, index in given):
        return "its indices are no whole numbers"
    new = Replacement(graph, node)
    fronts = []
    for axis, index in given:
        behind = new.add(aten.add.Scalar, index, shape[axis])
        fronts.append(new.add(aten.where.self, new.add(aten.lt.Scalar, index, 0), behind, index))
    place, extents = fronts[0], shape[first : last + 1]
    if len(given) > 1:
        place = _joined(new, fronts, extents)
        whole = [*shape[:first], math.prod(extents), *shape[last + 1 :]]
        data = new.add(aten.reshape.default, data, whole)
    flat = new.add(aten.reshape.default, place, [-1])
    taken = new.add(aten.index_select.default, data, first, flat)
    new.finish(new.add(aten.reshape.default, taken, list(result)))
    return None


def _joined(new: Replacement, fronts: list[fx.Node], extents: tuple[int, ...]) -> fx.Node:
    """Places along several axes as those along all of them; outside where one of them is."""
    outside = new.constant(np.array(math.prod(extents)))
    wide = [new.add(aten._to_copy.default, front, dtype=torch.int64) for front in fronts]
    place = wide[0]
    for front, extent in zip(wide[1:], extents[1:], strict=True):
        place = new.add(aten.add.Tensor, new.add(aten.mul.Scalar, place, extent), front)
    for front, extent in zip(wide, extents, strict=True):
        for beyond in (
            new.add(aten.lt.Scalar, front, 0),
            new.add(aten.ge.Scalar, front, extent),
        ):
            place = new.add(aten.where.self, beyond, outside, place)
    return place


def rewrite_copy(graph: FxGraph, node: fx.Node) -> str | None:
    """What is copied over all of a tensor, in the shape and dtype of that.

    Returns:
        None, or the reason why that cannot be done.
    """
    given, new = arguments_of(node), Replacement(graph, node)
    value, dtype = given["src"], node.meta["val"].dtype
    if not isinstance(value, fx.Node) or graph.shape(node) is None:
        return "it copies no tensor, or one of open shape"
    if value.meta["val"].dtype != dtype:
        value = new.add(aten._to_copy.default, value, dtype=dtype)
    new.finish(new.add(aten.expand.default, value, list(node.meta["val"].shape)))
    return None


def rewrite_slice_scatter(graph: FxGraph, node: fx.Node) -> str | None:
    """A tensor with another in place of a slice, as what is before it, that one, and the rest.

    Returns:
        None, or the reason why that cannot be done.
    """
    given, shape = arguments_of(node), graph.shape(node)
    data, axis = given["self"], given.get("dim", 0)
    if given.get("step", 1) != 1 or shape is None:
        return "its slice has gaps, or its shape is not fixed"
    if graph.dtype(data) != graph.dtype(given["src"]):
        return "its operands have different dtypes"
    extent = shape[axis]
    start, end, _ = slice(given.get("start"), given.get("end")).indices(extent)
    new = Replacement(graph, node)
    parts = [given["src"]] if end > start else []
    if start > 0:
        parts.insert(0, new.add(aten.slice.Tensor, data, axis, 0, start))
    if max(start, end) < extent:
        parts.append(new.add(aten.slice.Tensor, data, axis, max(start, end), extent))
    new.finish(new.add(aten.cat.default, parts, axis) if len(parts) > 1 else parts[0])
    return None
