"""Reductions in forms that TVM's importer gets right."""

import math
import operator
from collections.abc import Callable

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten
_CORRECTED = {aten.var.dim: aten.var.correction, aten.std.dim: aten.std.correction}
_SPREAD = {
    aten.var_mean.correction: aten.var.correction,
    aten.std_mean.correction: aten.std.correction,
}
EXACT = 1 << 24
"""Whole numbers up to this one are exact in float32."""


def rewrite_unbiased(graph: FxGraph, node: fx.Node) -> str | None:
    """Variance and deviation with a flag, as those with the number that the flag means.

    Returns:
        None: that can always be done.
    """
    given = arguments_of(node)
    correction, new = int(given["unbiased"]), Replacement(graph, node)
    new.finish(
        new.add(
            _CORRECTED[node.target],  # type: ignore[index]
            given["self"],
            given["dim"],
            correction=correction,
            keepdim=given["keepdim"],
        )
    )
    return None


def rewrite_extreme(graph: FxGraph, node: fx.Node) -> str | None:
    """Maxima or minima along one axis and where they are, as two reductions.

    Returns:
        None, or the reason why that cannot be done.
    """
    given, largest = arguments_of(node), node.target is aten.max.dim
    data, axis, kept = given["self"], given["dim"], given["keepdim"]
    values, places = (
        (aten.amax.default, aten.argmax.default)
        if largest
        else (aten.amin.default, aten.argmin.default)
    )
    return _one_by_one(
        graph,
        node,
        lambda new: new.add(values, data, [axis], kept),
        lambda new: new.add(places, data, axis, kept),
    )


def rewrite_spread(graph: FxGraph, node: fx.Node) -> str | None:
    """Variance or deviation together with the mean, as two reductions.

    Returns:
        None, or the reason why that cannot be done.
    """
    given, spread = arguments_of(node), _SPREAD[node.target]  # type: ignore[index]
    data, axes, kept = given["self"], given.get("dim"), given.get("keepdim", False)
    axes = list(range(data.meta["val"].ndim)) if axes is None else axes
    named = {"correction": given.get("correction"), "keepdim": kept}
    return _one_by_one(
        graph,
        node,
        lambda new: new.add(spread, data, axes, **named),
        lambda new: new.add(aten.mean.dim, data, axes, kept),
    )


def _one_by_one(
    graph: FxGraph, node: fx.Node, *makers: Callable[[Replacement], fx.Node]
) -> str | None:
    """Each result of an operator of several, by what makes it."""
    if any(user.target is not operator.getitem for user in node.users):
        return "its results are not taken one by one"
    for user in list(node.users):
        new = Replacement(graph, user)
        new.finish(makers[user.args[1]](new))  # type: ignore[index]
    return None


def rewrite_any(graph: FxGraph, node: fx.Node) -> str | None:
    """Whether anything is true, or not zero, as a maximum of numbers.

    Returns:
        None: that can always be done.
    """
    given, new = arguments_of(node), Replacement(graph, node)
    value, axes = given["self"], given.get("dim")
    if graph.dtype(value) != "bool":
        value = new.add(aten.ne.Scalar, value, 0)
    number = new.add(aten._to_copy.default, value, dtype=torch.float32)
    axes = [] if axes is None else [axes] if isinstance(axes, int) else axes
    largest = new.add(aten.amax.default, number, axes, given.get("keepdim", False))
    new.finish(new.add(aten.gt.Scalar, largest, 0))
    return None


def rewrite_count(graph: FxGraph, node: fx.Node) -> str | None:
    """How many are true, as a sum of numbers.

    Returns:
        None, or the reason why that cannot be done.
    """
    given, result = arguments_of(node), node.meta["val"]
    value, shape = given["self"], graph.shape(given["self"])
    if graph.dtype(value) != "bool" or shape is None:
        return "its input holds no truth values"
    if math.prod(shape) > EXACT:
        return f"there are more than {EXACT} of them"
    new = Replacement(graph, node)
    given["self"] = new.add(aten._to_copy.default, value, dtype=torch.float32)
    total = new.add(node.target, *(entry for name, entry in given.items() if name != "dtype"))
    new.finish(new.add(aten._to_copy.default, total, dtype=result.dtype))
    return None
