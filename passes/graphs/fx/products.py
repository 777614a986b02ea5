"""Products with constants, in the forms that are layers: without factors, and convolutions."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import NAME, arguments_of, module_path
from nmcompile.passes.graphs.interface import Array, unique_name, weight_owner


class Editor(Protocol):
    """What is asked of the graph."""

    module: fx.GraphModule

    def stored(self, node: fx.Node) -> Array | None:
        """The contents of a parameter or buffer."""

    def constant(self, value: fx.Node) -> Array | None:
        """The contents of a constant."""

    def shape(self, value: fx.Node) -> tuple[int, ...] | None:
        """That of a value."""

    def dtype(self, value: fx.Node) -> str | None:
        """That of a value."""

    def new_constant(self, wanted: str, value: Any, dtype: torch.dtype) -> fx.Node:
        """A new parameter."""

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give the readers of a value another."""

    def sweep(self) -> int:
        """Erase what nothing reads."""


aten = torch.ops.aten


def settle_products(graph: Editor) -> list[str]:
    """Rewrite products with constants in place; returns the names of the nodes concerned.

    1. Factors of addmm (alpha, beta) are multiplied into its constants.
    2. W x, with a matrix on the left, is a 1x1 convolution of the columns of x as an image of one
       row.
    """
    done = []
    for node in list(graph.module.graph.nodes):
        if node.target is aten.addmm.default:
            changed = _without_factors(graph, node)
        elif node.target in (aten.matmul.default, aten.mm.default):
            left, right = node.args
            weight = graph.stored(left)
            changed = (
                weight is not None
                and graph.constant(right) is None
                and _as_convolution(graph, node, weight)
            )
        else:
            continue
        done += [node.name] if changed else []
    if done:
        graph.sweep()
    return done


def _without_factors(graph: Editor, node: fx.Node) -> bool:
    """Case 1."""
    given = arguments_of(node)
    changed = False
    for name, factor in (("mat2", "alpha"), ("self", "beta")):
        array = graph.stored(given[name])
        if given[factor] == 1 or array is None or array.dtype.kind != "f":
            continue
        dtype = given[name].meta["val"].dtype
        with graph.module.graph.inserting_before(node):
            given[name] = graph.new_constant(str(given[name].target), array * given[factor], dtype)
        given[factor] = 1
        changed = True
    if changed:
        factors = {name: given.pop(name) for name in ("beta", "alpha")}
        node.args, node.kwargs = tuple(given.values()), factors
    return changed


def _as_convolution(graph: Editor, node: fx.Node, weight: Array) -> bool:
    """Case 2."""
    left, data = node.args
    assert isinstance(left, fx.Node) and isinstance(data, fx.Node)
    shape, made = graph.shape(data), graph.shape(node)
    if weight.ndim != 2 or graph.dtype(left) != "float32" or shape is None or made is None:
        return False
    if len(shape) < 2 or 0 in (*shape, *weight.shape):
        return False
    images = (math.prod(shape[:-2]), shape[-2], 1, shape[-1])
    taken = {str(n.meta[NAME]) for n in graph.module.graph.nodes if NAME in n.meta}
    name = str(left.target)
    wanted = weight_owner(name) or module_path(node) or node.name
    with graph.module.graph.inserting_before(node):
        kernel = graph.new_constant(name, weight[:, :, None, None], torch.float32)
        seen = _call(graph, aten.reshape.default, images, data, list(images))
        outputs = (images[0], len(weight), 1, images[3])
        conv = _call(graph, aten.conv2d.default, outputs, seen, kernel)
        result = _call(graph, aten.reshape.default, made, conv, list(made))
    conv.meta[NAME] = unique_name(wanted, taken)
    graph.replace(node, result)
    return True


def _call(graph: Editor, target: Any, shape: tuple[int, ...], *args: Any) -> fx.Node:
    node = graph.module.graph.call_function(target, args)
    node.meta["val"] = args[0].meta["val"].new_empty(shape)
    return node
