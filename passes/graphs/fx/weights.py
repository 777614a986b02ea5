"""Operators of aten graphs that have constant weights and are no layers: `Graph.weighted`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import (
    CONV,
    LINEAR,
    NAME,
    arguments_of,
    layer_name,
    weight_node,
)
from nmcompile.passes.graphs.fx.planar import CONVOLUTIONS, TRANSPOSED, read_planar
from nmcompile.passes.graphs.interface import Array, Weighted
from nmcompile.passes.graphs.planar import layers_of
from nmcompile.passes.graphs.transposed import outputs_first

aten = torch.ops.aten

_RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}


def weighted_node(
    node: fx.Node,
    constant: Callable[[fx.Node], Array | None],
    shape: Callable[[fx.Node], tuple[int, ...] | None],
) -> Weighted | None:
    """What a node that is no layer says about its weight; None where it has no constant one."""
    if node.target in _RECURRENT:
        return Weighted(
            node.name, "recurrent", None, "the weights of recurrent layers are not read"
        )
    if node.target not in CONV | LINEAR | CONVOLUTIONS | TRANSPOSED:
        return None
    source = weight_node(node)
    weight = constant(source) if isinstance(source, fx.Node) else None
    if weight is None and NAME not in node.meta:
        return None
    name = str(node.meta.get(NAME) or layer_name(node))
    if weight is None:
        reason = f"its weight is computed by {source}, which could not be evaluated"
        return Weighted(name, str(node.target), None, reason)
    if node.target in LINEAR:
        if weight.ndim != 2:
            reason = f"its weight has {weight.ndim} dimensions; a pattern is one of matrices"
            return Weighted(name, "linear", None, reason)
        read, groups, kind = weight, 1, "linear"
        if node.target is not aten.linear.default:
            read = weight.T
    else:
        arguments = arguments_of(node)
        groups = int(arguments["groups"])
        transposed = node.target in TRANSPOSED or bool(arguments.get("transposed", False))
        kind = f"conv{'_transpose' if transposed else ''}{weight.ndim - 2}d"
        read = outputs_first(weight, groups) if transposed else weight
    out = shape(node)
    macs = None if out is None else int(np.prod(out, dtype=np.int64)) * int(np.prod(read.shape[1:]))
    form = read_planar(node, constant, shape)
    pieces = () if form is None else layers_of(form, name)
    if pieces:
        macs = sum(piece.macs or 0 for piece in pieces)
    handle = node if pieces and source.op == "get_attr" else None
    return Weighted(name, kind, read, "", groups, macs, pieces, handle)
