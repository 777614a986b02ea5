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


def rewrite_clamp(graph: FxGraph, node: fx.Node) -> str | None:
    """Whole numbers between bounds, as a maximum and a minimum.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    value, dtype = given["self"], graph.dtype(node)
    bounds = {name: given.get(name) for name in ("min", "max")}
    if dtype not in ("int8", "uint8", "int16", "int32", "int64"):
        return "its input holds no whole numbers"
    if dtype != graph.dtype(value) or any(
        bound is not None and not isinstance(bound, int) for bound in bounds.values()
    ):
        return "its bounds are no whole numbers"
    new = Replacement(graph, node)
    for name, target in (("min", aten.maximum.default), ("max", aten.minimum.default)):
        bound = bounds[name]
        if bound is None:
            continue
        limits = np.iinfo(np.dtype(dtype))
        if not limits.min <= bound <= limits.max:
            return f"its {name} is outside of {dtype}"
        value = new.add(target, value, new.constant(np.array(bound, dtype)))
    new.finish(value)
    return None


def rewrite_bounds(graph: FxGraph, node: fx.Node) -> str | None:
    """Bounds that are tensors, as a maximum and a minimum.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    value, found = given["self"], [given.get("min"), given.get("max")]
    if any(bound is not None and graph.dtype(bound) != graph.dtype(value) for bound in found):
        return "its bounds have another dtype"
    new = Replacement(graph, node)
    for bound, target in zip(found, (aten.maximum.default, aten.minimum.default), strict=True):
        value = value if bound is None else new.add(target, value, bound)
    new.finish(value)
    return None


def rewrite_power(graph: FxGraph, node: fx.Node) -> str | None:
    """A number to the power of a tensor, as a tensor to that power.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    if graph.dtype(given["exponent"]) != "float32":
        return "its exponents are no float32"
    new = Replacement(graph, node)
    base = new.constant(float(given["self"]))
    new.finish(new.add(aten.pow.Tensor_Tensor, base, given["exponent"]))
    return None


def rewrite_product(graph: FxGraph, node: fx.Node) -> str | None:
    """Products with truth values: of two an and, of others with the values as numbers.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    if graph.dtype(given["self"]) != "bool":
        return "its first operand is none that products are known of"
    new, dtype = Replacement(graph, node), node.meta["val"].dtype
    if dtype is torch.bool and isinstance(given["other"], fx.Node):
        new.finish(new.add(aten.logical_and.default, given["self"], given["other"]))
        return None
    if dtype is torch.bool:
        return "its number is a truth value"
    number = new.add(aten._to_copy.default, given["self"], dtype=dtype)
    new.finish(new.add(node.target, number, given["other"]))
    return None
