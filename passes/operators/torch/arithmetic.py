"""Arithmetic whose details TVM's importer passes over, written out."""

import numpy as np
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


def rewrite_unequal(graph: FxGraph, node: fx.Node) -> str | None:
    """X != y of floats as x > y or x < y or one of them being NaN; of truth values as xor.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    first, second = given["self"], given["other"]
    new = Replacement(graph, node)
    tensors = [operand for operand in (first, second) if isinstance(operand, fx.Node)]
    if all(graph.dtype(operand) == "bool" for operand in tensors):
        if len(tensors) == 1:
            if second not in (0, 1):
                return "its number is no truth value"
            second = new.constant(np.array(bool(second)))
        new.finish(new.add(aten.logical_xor.default, first, second))
        return None
    if any(graph.dtype(operand) != "float32" for operand in tensors):
        return "its operands are not of one dtype"
    scalar = len(tensors) == 1
    more, less = (aten.gt.Scalar, aten.lt.Scalar) if scalar else (aten.gt.Tensor, aten.lt.Tensor)
    found = new.add(
        aten.logical_or.default, new.add(more, first, second), new.add(less, first, second)
    )
    for operand in tensors:
        found = new.add(aten.logical_or.default, found, new.add(aten.isnan.default, operand))
    new.finish(found)
    return None


def rewrite_elu(graph: FxGraph, node: fx.Node) -> str | None:
    """Elu with a factor, and selu, as a plain elu and the factor.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    if given.get("input_scale", 1) != 1:
        return "its input has a factor"
    if node.target is aten.selu.default:
        given |= {"alpha": 1.6732632423543772, "scale": 1.0507009873554805}
    new = Replacement(graph, node)
    plain = new.add(aten.elu.default, given["self"], given["alpha"])
    new.finish(new.add(aten.mul.Tensor, plain, new.constant(float(given["scale"]))))
    return None
