"""Products with constants, in the forms that are layers: plain Gemm, and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, unique_name, weight_owner
from nmcompile.passes.graphs.onnx.nodes import (
    NAME,
    float_attribute,
    int_attribute,
    module_scope,
)


class Editor(Protocol):
    """What is asked of the graph."""

    model: ir.Model

    def stored(self, found: ir.Value) -> Array | None:
        """The contents of an initializer."""

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is known."""

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """That of a value."""

    def new_constant(self, wanted: str, array: Array) -> ir.Value:
        """A new initializer."""

    def value_names(self) -> set[str]:
        """Names that are taken."""

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Give the readers of a value another."""

    def sweep(self) -> int:
        """Erase what nothing reads."""


def settle_products(graph: Editor) -> list[str]:
    """Rewrite products with constants in place; returns the names of the nodes concerned.

    1. Factors of Gemm (alpha, beta) are multiplied into its constants.
    2. What Gemm transposes of its first input is transposed in front of it.
    3. W x, with a matrix on the left, is a 1x1 convolution: of MatMul of the columns of x as an
       image of one row.
    4. Gemm with the constant on the left is the transposed of one with it on the right.
    """
    done = []
    for node in list(graph.model.graph):
        if node.domain != "" or node.op_type not in ("Gemm", "MatMul"):
            continue
        left, right = node.inputs[:2]
        assert left is not None and right is not None
        weight = graph.stored(left)
        if weight is not None and not graph.is_constant(right):
            turn = _as_convolution if node.op_type == "MatMul" else _turned
            changed = turn(graph, node, weight)
        else:
            weight = graph.stored(right)
            changed = node.op_type == "Gemm" and weight is not None and _plain(graph, node, weight)
        done += [str(node.name or node.op_type)] if changed else []
    if done:
        graph.sweep()
    return done


def add_behind(graph: Editor, node: ir.Node, layer: str, bias: Array) -> None:
    """Add to the product of a node: to the constant that is added already, if one is."""
    product = node.outputs[0]
    users = [user for user, _ in product.uses()]
    if len(users) == 1 and not product.is_graph_output() and users[0].op_type == "Add":
        (place,) = (i for i, value in enumerate(users[0].inputs) if value is not product)
        added = users[0].inputs[place]
        known = None if added is None else graph.stored(added)
        if known is not None and known.shape == bias.shape:
            total = graph.new_constant(f"{layer}.bias", known + bias)
            users[0].replace_input_with(place, total)
            return
    made = ir.node("Add", [product, graph.new_constant(f"{layer}.bias", bias)])
    result = made.outputs[0]
    result.name = made.name = unique_name(f"{product.name}_biased", graph.value_names())
    result.shape, result.type = product.shape, product.type
    graph.model.graph.insert_after(node, made)
    graph.replace(product, result)
    made.replace_input_with(0, product)


def _plain(graph: Editor, node: ir.Node, weight: Array) -> bool:
    """Cases 1 and 2."""
    alpha, beta = (float_attribute(node, name, 1.0) for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    added = None if bias is None else graph.stored(bias)
    changed = False
    if alpha != 1.0 and weight.dtype.kind == "f":
        node.replace_input_with(1, _scaled(graph, node.inputs[1], alpha))
        del node.attributes["alpha"]
        changed = True
    if beta != 1.0 and (bias is None or (added is not None and added.dtype.kind == "f")):
        if bias is not None:
            node.replace_input_with(2, _scaled(graph, bias, beta))
        del node.attributes["beta"]
        changed = True
    if int_attribute(node, "transA", 0):
        data = node.inputs[0]
        assert data is not None
        shape = graph.shape(data)
        turned = _made(graph, node, "Transpose", [data], shape and shape[::-1], perm=(1, 0))
        node.replace_input_with(0, turned)
        del node.attributes["transA"]
        changed = True
    return changed


def _turned(graph: Editor, node: ir.Node, weight: Array) -> bool:
    """Case 4: (B'^T A'^T)^T, which B' and A' are the operands of after their own transpositions."""
    alpha, beta = (float_attribute(node, name, 1.0) for name in ("alpha", "beta"))
    shape = graph.shape(node.outputs[0])
    if shape is None or weight.dtype != np.float32:
        return False
    left, right, *rest = node.inputs
    assert right is not None
    data = right
    matrix = weight.T if int_attribute(node, "transA", 0) else weight  # (O, I)
    inputs = (shape[1], matrix.shape[1])
    if not int_attribute(node, "transB", 0):
        data = _made(graph, node, "Transpose", [right], inputs, perm=(1, 0))
    stored = graph.new_constant(str(left and left.name), matrix * np.float32(alpha))
    product = _made(graph, node, "Gemm", [data, stored], shape[::-1], transB=1)
    _take_name(graph, node, product, left)
    result = _made(graph, node, "Transpose", [product], shape, perm=(1, 0))
    if rest and rest[0] is not None:
        added = rest[0]
        if beta != 1.0:
            factor = graph.new_constant(f"{node.name}.beta", np.array(beta, np.float32))
            added = _made(graph, node, "Mul", [added, factor], graph.shape(added))
        result = _made(graph, node, "Add", [result, added], shape)
    graph.replace(node.outputs[0], result)
    return True


def _as_convolution(graph: Editor, node: ir.Node, weight: Array) -> bool:
    """Case 3."""
    left, data = node.inputs
    assert left is not None and data is not None
    shape, made = graph.shape(data), graph.shape(node.outputs[0])
    if weight.ndim != 2 or weight.dtype != np.float32 or shape is None or made is None:
        return False
    if len(shape) < 2 or 0 in (*shape, *weight.shape):
        return False
    images = (math.prod(shape[:-2]), shape[-2], 1, shape[-1])
    outputs = (images[0], len(weight), 1, images[3])
    kernel = graph.new_constant(str(left.name), weight[:, :, None, None])
    seen = _made(graph, node, "Reshape", [data, _numbers(graph, node, images)], images)
    conv = _made(graph, node, "Conv", [seen, kernel], outputs)
    _take_name(graph, node, conv, left)
    result = _made(graph, node, "Reshape", [conv, _numbers(graph, node, made)], made)
    graph.replace(node.outputs[0], result)
    return True


def _take_name(graph: Editor, node: ir.Node, made: ir.Value, weight: ir.Value | None) -> None:
    """Call the layer that makes a value after the constant that a node multiplies with."""
    layer = made.producer()
    assert layer is not None and weight is not None
    taken = {str(other.meta[NAME]) for other in graph.model.graph if NAME in other.meta}
    wanted = weight_owner(str(weight.name)) or module_scope(node) or str(node.name or made.name)
    layer.meta[NAME] = unique_name(wanted, taken)


def _made(
    graph: Editor,
    node: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value],
    shape: Sequence[int] | None,
    **attributes: Any,
) -> ir.Value:
    """A new node in front of another; its output is of the type of its first input."""
    name = str(node.name or node.outputs[0].name)
    made = ir.node(operator, inputs, attributes)
    value = made.outputs[0]
    value.name = made.name = unique_name(f"{name}.{operator}", graph.value_names())
    value.shape, value.type = None if shape is None else ir.Shape(shape), inputs[0].type
    graph.model.graph.insert_before(node, made)
    return value


def _numbers(graph: Editor, node: ir.Node, numbers: Sequence[int]) -> ir.Value:
    return graph.new_constant(f"{node.name}.shape", np.array(numbers, np.int64))


def _scaled(graph: Editor, value: ir.Value | None, factor: float) -> ir.Value:
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy()
    return graph.new_constant(str(value.name), (array * factor).astype(array.dtype))
