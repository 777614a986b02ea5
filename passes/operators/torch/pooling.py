"""Pooling in forms that TVM's importer gets right."""

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten

_PLAIN: dict[Any, Any] = {
    aten.adaptive_max_pool1d.default: aten.max_pool1d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d.default,
    aten.adaptive_max_pool3d.default: aten.max_pool3d.default,
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}
"""The maximum pooling that returns no indices, by a stride."""


def rewrite_average(graph: FxGraph, node: fx.Node) -> str | None:
    """Average pooling with a divisor of its own, as the usual one times a number.

    Returns:
        None, or the reason why that cannot be done.
    """
    arguments = arguments_of(node)
    divisor = arguments["divisor_override"]
    if divisor is None or arguments["ceil_mode"]:
        return "windows that reach over the edge have divisors of their own"
    window, axes = arguments["kernel_size"], 2 if node.target is aten.avg_pool2d.default else 3
    count = math.prod(window) if len(window) > 1 else window[0] ** axes
    new = Replacement(graph, node)
    # All elements of a window count, those of the padding too, so that the factor is one number.
    plain = [*list(arguments.values())[:4], False, True, None]
    average = new.add(node.target, *plain)
    new.finish(new.add(aten.mul.Tensor, average, new.constant(count / divisor)))
    return None


def rewrite_indexed_max(graph: FxGraph, node: fx.Node) -> str | None:
    """Maximum pooling that returns indices nobody reads, as the one that returns none.

    Returns:
        None, or the reason why that cannot be done.
    """
    first = _only_first(node)
    if isinstance(first, str):
        return first
    new = Replacement(graph, first)
    new.finish(new.add(_PLAIN[node.target], *node.args, **node.kwargs))
    return None


def rewrite_adaptive_max(graph: FxGraph, node: fx.Node) -> str | None:
    """Adaptive maximum pooling as pooling by a stride, one axis after another.

    Output i of o is the maximum of the elements from floor(i n / o) to ceil((i + 1) n / o). Where
    these windows differ, they are put one behind the other first, the shorter ones with their last
    element once more.

    Returns:
        None, or the reason why that cannot be done.
    """
    first = _only_first(node)
    if isinstance(first, str):
        return first
    data, pool = node.all_input_nodes[0], _PLAIN[node.target]
    shape, result = graph.shape(data), graph.shape(first)
    if shape is None or result is None:
        return "its input has no fixed shape"
    new, value, axes = Replacement(graph, first), data, len(arguments_of(node)["output_size"])
    alone = len(shape) == axes + 1
    if alone:
        value = new.add(aten.unsqueeze.default, value, 0)
    for axis, (extent, wanted) in enumerate(zip(shape[-axes:], result[-axes:], strict=True)):
        size = extent // wanted
        if extent % wanted:
            places = np.arange(wanted)
            begin, end = places * extent // wanted, -(-(places + 1) * extent // wanted)
            size = int((end - begin).max())
            index = np.minimum(begin[:, None] + np.arange(size), end[:, None] - 1).reshape(-1)
            value = new.add(aten.index_select.default, value, 2 + axis, new.constant(index))
        if size > 1:
            window = [size if each == axis else 1 for each in range(axes)]
            value = new.add(pool, value, window, window)
    new.finish(new.add(aten.squeeze.dim, value, 0) if alone else value)
    return None


def _only_first(node: fx.Node) -> Any:
    """The node that takes the first result, or why there is no such one alone."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function" or users[0].args[1:] != (0,):
        return "its indices are used"
    return users[0]
