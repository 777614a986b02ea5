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


def rewrite_average(graph: FxGraph, node: fx.Node) -> str | None:
    """Average pooling with a divisor of its own, as the usual one times a number.

    Returns:
        None, or the reason why that cannot be done.
    """
    arguments = arguments_of(node)
    divisor = arguments["divisor_override"]
    if divisor is None or arguments["ceil_mode"]:
        return "windows that reach over the edge have divisors of their own"
    window = arguments["kernel_size"]
    count = math.prod(window) if len(window) > 1 else window[0] ** 2
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
    new.finish(new.add(aten.max_pool2d.default, *node.args, **node.kwargs))
    return None


def rewrite_adaptive_max(graph: FxGraph, node: fx.Node) -> str | None:
    """Adaptive maximum pooling as maxima of gathers, one axis after another.

    Output i of o is the maximum of the elements from floor(i n / o) to ceil((i + 1) n / o).

    Returns:
        None, or the reason why that cannot be done.
    """
    first = _only_first(node)
    if isinstance(first, str):
        return first
    data = node.all_input_nodes[0]
    shape, result = graph.shape(data), graph.shape(first)
    if shape is None or result is None:
        return "its input has no fixed shape"
    new, value = Replacement(graph, first), data
    for axis, (extent, wanted) in enumerate(zip(shape, result, strict=True)):
        if extent == wanted:
            continue
        places = np.arange(wanted)
        begin, end = places * extent // wanted, -(-(places + 1) * extent // wanted)
        total: fx.Node | None = None
        for offset in range(int((end - begin).max())):
            index = np.minimum(begin + offset, end - 1)
            term = new.add(aten.index_select.default, value, axis, new.constant(index))
            total = term if total is None else new.add(aten.maximum.default, total, term)
        assert total is not None
        value = total
    new.finish(value)
    return None


def _only_first(node: fx.Node) -> Any:
    """The node that takes the first result, or why there is no such one alone."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function" or users[0].args[1:] != (0,):
        return "its indices are used"
    return users[0]
