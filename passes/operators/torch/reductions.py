"""Reductions in forms that TVM's importer gets right."""

import operator

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten
_CORRECTED = {aten.var.dim: aten.var.correction, aten.std.dim: aten.std.correction}


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
    if any(user.target is not operator.getitem for user in node.users):
        return "its results are not taken one by one"
    given = arguments_of(node)
    largest = node.target is aten.max.dim
    data, axis, kept = given["self"], given["dim"], given["keepdim"]
    for user in list(node.users):
        new = Replacement(graph, user)
        if user.args[1] == 0:
            target = aten.amax.default if largest else aten.amin.default
            new.finish(new.add(target, data, [axis], kept))
        else:
            target = aten.argmax.default if largest else aten.argmin.default
            new.finish(new.add(target, data, axis, kept))
    return None
