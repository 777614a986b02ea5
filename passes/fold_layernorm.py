"""Fold the scale and the shift of layer norms into the products behind them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from nmcompile.passes.graphs.interface import Graph, Op, PassResult, Value


class FoldLayerNorm:
    """Multiply the scale and the shift of a layer norm into the weights of the layers behind it.

    With y = scale[i] * n + shift[i] before x = W * y + b, where n is normalised, the layer becomes
    W'[o, i] = W[o, i] * scale[i], b' = b + W * shift, computed in float64. The norm normalises, and
    no more.

    Legal case: the norm is along the last axis, and all that reads it are matrix products with
    constant weights of their own along that axis, behind operators at most that move or pick what
    lies along other axes (a class token, tokens first). Norms that others read, as residual sums
    behind them, stay as they are: nothing would be gained. So do those in front of quantised
    weights.

    A whole column of weights is scaled by one number, so every sparsity pattern survives.
    """

    name = "fold_layernorm"

    def call(self, graph: Graph) -> PassResult:
        """Run on `graph` in place; says nothing: what stays costs next to nothing."""
        ops = graph.ops()
        readers: defaultdict[Value, list[Op]] = defaultdict(list)
        for op in ops:
            for value in op.inputs:
                readers[value].append(op)
        found = [(op, _layers(graph, op, readers)) for op in ops if op.kind == "layer_norm"]
        # No layer reads two norms, and no weight is that of two: an edit leaves the others valid.
        folds = [(norm, layers) for norm, layers in found if layers is not None]
        for norm, layers in folds:
            _fold(graph, norm, layers)
        return PassResult(graph, bool(folds))


def _layers(graph: Graph, norm: Op, readers: Mapping[Value, Sequence[Op]]) -> list[Op] | None:
    """The products that read a norm, None where others do, too."""
    shape = graph.shape(norm.output)
    found: list[Op] = []
    waiting = [norm.output]
    while waiting:
        value = waiting.pop()
        users = readers.get(value, ())
        if shape is None or graph.uses(value) != len(users) or not users:
            return None  # a subgraph reads it, or it is an output
        for op in users:
            moved = _moved(graph, op, value, shape[-1])
            if op.kind == "linear" and op.inputs[0] == value and _is_own(graph, op):
                found.append(op)
            elif moved:
                waiting += moved
            else:
                return None
    return found


def _is_own(graph: Graph, op: Op) -> bool:
    """Whether a weight is real numbers that nothing else reads."""
    return op.integers is None and graph.readers(op.parameters[0].value) == 1


def _moved(graph: Graph, op: Op, value: Value, channels: int) -> list[Value]:
    """What an operator makes that leaves the last axis as it is; nothing if it does not."""
    before, after = graph.shape(value), graph.shape(op.output)
    if before is None or after is None or op.inputs[0] != value or not after:
        return []
    last, axes = len(before) - 1, op.flow.axes
    kept = {
        "transpose": bool(axes) and axes[-1] == last,
        "slice": axes != (last,),
        "reshape": before[-1] == after[-1] == channels,
        "pointwise": op.kind == "identity",
    }
    return [op.output, *op.others] if kept.get(op.flow.kind, False) else []


def _fold(graph: Graph, norm: Op, layers: Sequence[Op]) -> None:
    assert norm.affine is not None
    scale, shift = norm.affine.scale, norm.affine.shift
    # By the graph, not by the numbers: other weights of the model are to give the same graph.
    shifts = len(norm.inputs) > 2 or bool(shift.any())
    for layer in layers:
        assert layer.weight is not None
        weight = layer.weight.astype(np.float64)
        bias = layer.bias
        if shifts:
            bias = weight @ shift + (0.0 if bias is None else bias)
        graph.set_weight(layer, weight * scale, bias)
    graph.drop_affine(norm)
