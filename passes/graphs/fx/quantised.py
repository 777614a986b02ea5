"""Dequantised constants in aten graphs: they stay in the graph, and are constants all the same.

The operators are those of PT2E quantisation, which torch registers once something imports them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import RESHAPE, arguments_of
from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.quantised import STORED, QuantisedConstant

aten = torch.ops.aten

_LIBRARY = "quantized_decomposed"
_DEQUANTISE = {
    f"{_LIBRARY}.dequantize_per_tensor.default",
    f"{_LIBRARY}.dequantize_per_tensor.tensor",
    f"{_LIBRARY}.dequantize_per_tensor.tensor2",
    f"{_LIBRARY}.dequantize_per_channel.default",
}
_SHAPED = RESHAPE | {aten.alias.default, aten.clone.default, aten.detach.default}
_TURNED = {aten.permute.default, aten.t.default, aten.transpose.int}

ConstantOf = Callable[[fx.Node], Array | None]


def is_dequantisation(node: fx.Node) -> bool:
    """Whether the node makes real numbers of integers."""
    return str(node.target) in _DEQUANTISE


def integers(node: fx.Node, stored: ConstantOf) -> QuantisedConstant | None:
    """What stands behind a node that dequantises constants.

    Args:
        node: of the graph.
        stored: the contents of a parameter or buffer, None for any other node.
    """
    if not is_dequantisation(node):
        return None
    given = arguments_of(node)
    names = ("scales", "zero_points") if "scales" in given else ("scale", "zero_point")
    values = stored(given["input"])
    scale, zero = (_number(given[name], stored) for name in names)
    if values is None or scale is None or zero is None:
        return None
    if values.dtype.name not in STORED or given["out_dtype"] not in (None, torch.float32):
        return None
    axis = int(given.get("axis", 0)) % max(values.ndim, 1)
    points = zero.astype(values.dtype)
    if not np.array_equal(points, zero):
        return None
    return QuantisedConstant(values, scale.astype(np.float32), points, axis)


def viewed(
    node: fx.Node, source: QuantisedConstant, shape: tuple[int, ...] | None
) -> QuantisedConstant | None:
    """What a node makes of dequantised constants, if it moves the elements of its first argument.

    Args:
        node: of the graph.
        source: behind its first argument.
        shape: of its output.

    Returns:
        None where it does something else, or the result has no such form.
    """
    if node.target in _TURNED:
        order = list(range(source.values.ndim))
        if node.target is aten.permute.default:
            order = [int(axis) % len(order) for axis in arguments_of(node)["dims"]]
        elif node.target is aten.t.default:
            order.reverse()
        else:
            a, b = (arguments_of(node)[name] for name in ("dim0", "dim1"))
            order[a], order[b] = order[b], order[a]
        return source.transposed(order)
    if node.target in _SHAPED and shape is not None:
        return source.reshaped(shape)
    return None


def dequantise(
    graph: fx.Graph, found: QuantisedConstant, constant: Callable[[str, Array], fx.Node]
) -> fx.Node:
    """Add a dequantisation of new constants, which `constant` makes from a leaf and an array."""
    library = getattr(torch.ops, _LIBRARY)
    info = np.iinfo(found.values.dtype)
    dtype = getattr(torch, found.values.dtype.name)
    values = constant("quantized", found.values)
    limits = (int(info.min), int(info.max), dtype)
    if found.per_slice:
        extent = (found.values.shape[found.axis],)
        scale, zero = (np.broadcast_to(a.reshape(-1), extent) for a in (found.scale, found.zero))
        slices = (constant("scale", scale), constant("zero_point", zero.astype(np.int64)))
        target, args = library.dequantize_per_channel.default, (*slices, found.axis, *limits)
    else:
        numbers: tuple[Any, ...] = (found.scale.item(), int(found.zero.item()))
        target, args = library.dequantize_per_tensor.default, (*numbers, *limits)
    node = graph.call_function(target, (values, *args))
    node.meta["val"] = torch.empty(found.values.shape, dtype=torch.float32, device="meta")
    return node


def _number(given: Any, stored: ConstantOf) -> Array | None:
    """A scale or zero point, written as a number, a constant or nothing."""
    if given is None:
        return np.zeros((), np.int64)
    return stored(given) if isinstance(given, fx.Node) else np.asarray(given)
