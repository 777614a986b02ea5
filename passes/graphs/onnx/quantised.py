"""DequantizeLinear of constants: they stay in the graph, and what they make are constants too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.nodes import int_attribute, ints_attribute
from nmcompile.passes.graphs.quantised import STORED, QuantisedConstant

_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move elements and leave them as they are."""

_WIDENED = {"int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8}
"""What integers of which a byte holds several are read as."""

StoredOf = Callable[[ir.Value], Array | None]


def is_kept(node: ir.Node) -> bool:
    """Whether the node is a dequantisation that is never folded, if it reads constants."""
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "com.microsoft"):
        return False
    values, scale = (*node.inputs, None, None)[:2]
    known = values is not None and values.dtype is not None and scale is not None
    axis = node.attributes.get("axis")
    if axis is not None and axis.type is not ir.AttributeType.INT:
        return False  # nobody checks onnxruntime's own operators
    if not known or int_attribute(node, "block_size", 0):
        return False
    assert values is not None and values.dtype is not None and scale is not None
    wanted = ir.DataType(int_attribute(node, "output_dtype", 0) or ir.DataType.FLOAT)
    stored = values.dtype.name.lower() in STORED or is_packed(node)
    return stored and scale.dtype is ir.DataType.FLOAT and wanted is ir.DataType.FLOAT


def is_packed(node: ir.Node) -> bool:
    """Whether a dequantisation reads integers of which a byte holds several."""
    values = node.inputs[0] if node.inputs else None
    return (
        node.op_type == "DequantizeLinear"
        and values is not None
        and values.dtype is not None
        and values.dtype.name.lower() in _WIDENED
    )


def integers(value: ir.Value, stored: StoredOf) -> QuantisedConstant | None:
    """What stands behind a value that a dequantisation of constants makes.

    Args:
        value: of the graph.
        stored: the contents of an initializer, None for any other value.
    """
    node = value.producer()
    if node is None or not is_kept(node):
        return None
    found = [None if entry is None else stored(entry) for entry in node.inputs]
    if any(array is None for array in found):
        return None
    values, scale = found[0], found[1]
    assert values is not None and scale is not None
    given = found[2] if len(found) > 2 else None
    if is_packed(node):
        wide = _WIDENED[values.dtype.name]
        values, given = values.astype(wide), None if given is None else given.astype(wide)
    zero = np.zeros(scale.shape, values.dtype) if given is None else given
    axis = int_attribute(node, "axis", 1)
    # Of vectors the default axis is the only one that there is.
    axis = axis % values.ndim if -values.ndim <= axis < values.ndim else 0
    fits = all(array.size in (1, *values.shape[axis : axis + 1]) for array in (scale, zero))
    return QuantisedConstant(values, scale, zero, axis) if fits else None


def is_view(node: ir.Node) -> bool:
    """Whether the node hands on the elements of its first input, in another shape or order."""
    return node.domain == "" and node.op_type in _VIEWS


def viewed(
    node: ir.Node, source: QuantisedConstant, shape: tuple[int, ...] | None
) -> QuantisedConstant | None:
    """What a view of dequantised constants makes; None where that has no such form.

    Args:
        node: a view.
        source: of its first input.
        shape: of its output.
    """
    if node.op_type == "Identity":
        return source
    if node.op_type == "Transpose":
        rank = source.values.ndim
        order = ints_attribute(node, "perm", tuple(reversed(range(rank))))
        return source.transposed(order)
    return None if shape is None else source.reshaped(shape)
