"""Interpolation as what it is: a linear map along each axis that changes."""

from typing import Any

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.taps import taps_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_upsample(graph: FxGraph, node: fx.Node) -> str | None:
    """Write an upsampling operator as weighted sums of gathers, one axis after another.

    Every mode of interpolation weighs elements along one axis by numbers that depend on positions
    alone. They are found by having torch itself interpolate an identity matrix.

    Returns:
        None, or the reason why that cannot be done.
    """
    data = node.all_input_nodes[0]
    shape, result = graph.shape(data), graph.shape(node)
    if shape is None or result is None or graph.dtype(data) != "float32":
        return "its input is not float32, or has no fixed shape"
    new, value = Replacement(graph, node), data
    for axis in range(2, len(shape)):
        matrix = _matrix(node, len(shape), axis, shape[axis], result[axis])
        if shape[axis] == result[axis] and torch.equal(matrix, torch.eye(shape[axis])):
            continue
        total: fx.Node | None = None
        for tap in taps_of(matrix.numpy()):
            term = new.add(aten.index_select.default, value, axis, new.constant(tap.index))
            if tap.weight is not None:
                weight = tap.weight.reshape([-1] + [1] * (len(shape) - 1 - axis))
                term = new.add(aten.mul.Tensor, term, new.constant(weight))
            total = term if total is None else new.add(aten.add.Tensor, total, term)
        assert total is not None
        value = total
    new.finish(value)
    return None


def _matrix(node: fx.Node, rank: int, axis: int, extent: int, wanted: int) -> torch.Tensor:
    """What the node does along one axis, (outputs, inputs), in the arithmetic of float32."""
    arguments: dict[str, Any] = {
        entry.name: value
        for entry, value in zip(
            node.target._schema.arguments,  # type: ignore[union-attr]
            arguments_of(node).values(),
            strict=True,
        )
    }
    # One channel per input element. Other axes keep their extent, which is 2: torch 2.13 does not
    # antialias rows of one element.
    image = torch.eye(extent).reshape(1, extent, *_at(axis - 2, rank - 2, extent, 1))
    image = image.expand(1, extent, *_at(axis - 2, rank - 2, extent)).contiguous()
    arguments[next(iter(arguments))] = image
    if arguments.get("output_size") is not None:
        arguments["output_size"] = _at(axis - 2, rank - 2, wanted)
    if arguments.get("scale_factors") is not None:
        own = float(arguments["scale_factors"][axis - 2])
        arguments["scale_factors"] = _at(axis - 2, rank - 2, own, 1.0)
    for place, name in enumerate(("scales_d", "scales_h", "scales_w")[-(rank - 2) :]):
        if arguments.get(name) is not None and place != axis - 2:
            arguments[name] = None
    with torch.no_grad():
        done: torch.Tensor = node.target(**arguments)  # type: ignore[operator]
    first = done[0][(slice(None), *_at(axis - 2, rank - 2, slice(None), 0))]
    return first.T.contiguous()


def _at(place: int, count: int, value: Any, other: Any = 2) -> list[Any]:
    return [value if index == place else other for index in range(count)]
