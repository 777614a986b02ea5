"""Attention spelled out, so that rows whose keys are all masked give what torch gives: zeros."""

import math

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_attention(graph: FxGraph, node: fx.Node) -> str | None:
    """softmax(q k^T scale + mask) v.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    shapes = [graph.shape(operand) for operand in (query, key, value)]
    if given["dropout_p"]:
        return "dropout"
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return "its operands have no fixed shapes of one rank"
    assert shapes[0] is not None and shapes[1] is not None
    new = Replacement(graph, node)
    if given.get("enable_gqa"):
        shared = [
            _shared(new, x, shape, shapes[0]) for x, shape in ((key, shapes[1]), (value, shapes[2]))
        ]
        if None in shared:
            return "queries whose heads those of keys and values do not divide"
        key, value = shared
    factor = given["scale"] if given["scale"] is not None else 1 / math.sqrt(shapes[0][-1])
    scaled = new.add(aten.mul.Tensor, query, new.constant(float(factor)))
    scores = new.add(aten.matmul.default, scaled, new.add(aten.transpose.int, key, -2, -1))
    masked = mask is not None
    if given["is_causal"]:
        rows, columns = shapes[0][-2], shapes[1][-2]
        causal = np.where(np.tri(rows, columns, dtype=bool), 0, -np.inf).astype(np.float32)
        scores = new.add(aten.add.Tensor, scores, new.constant(causal))
    if mask is not None and graph.dtype(mask) == "bool":
        # Where a key may not be seen, its score is -inf whatever it was.
        lowest = new.constant(-math.inf)
        scores = new.add(aten.where.self, mask, scores, lowest)
    elif mask is not None:
        scores = new.add(aten.add.Tensor, scores, mask)
    weights = new.add(aten.softmax.int, scores, -1)
    if masked:
        # TVM has no code for amax, so what is left to be seen is counted.
        hidden = new.add(aten.eq.Scalar, scores, -math.inf)
        seen = new.add(aten.where.self, hidden, new.constant(0.0), new.constant(1.0))
        nothing = new.add(aten.eq.Scalar, new.add(aten.sum.dim_IntList, seen, [-1], True), 0)
        weights = new.add(aten.where.self, nothing, new.constant(0.0), weights)
    new.finish(new.add(aten.matmul.default, weights, value))
    return None


def _shared(
    new: Replacement, x: fx.Node, shape: tuple[int, ...] | None, queries: tuple[int, ...]
) -> fx.Node | None:
    """Keys or values with each head as often as heads of queries share it."""
    if shape is None or len(shape) < 3 or queries[-3] % shape[-3]:
        return None
    share = queries[-3] // shape[-3]
    apart = new.add(aten.unsqueeze.default, x, -3)
    apart = new.add(aten.expand.default, apart, [*shape[:-2], share, *shape[-2:]])
    joined = [*shape[:-3], queries[-3], *shape[-2:]]
    return new.add(aten.reshape.default, apart, joined)
