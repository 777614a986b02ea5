"""Sums whose second operand has a factor, which TVM's importer passes over."""

import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_scaled(graph: FxGraph, node: fx.Node) -> str | None:
    """X + alpha y, and x - alpha y, with the product written out.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    first, second, factor = (given[name] for name in ("self", "other", "alpha"))
    if not isinstance(second, fx.Node):
        return "its second operand is a number"
    new = Replacement(graph, node)
    new.finish(new.add(node.target, first, new.add(aten.mul.Scalar, second, factor)))
    return None
