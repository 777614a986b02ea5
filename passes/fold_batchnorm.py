"""Fold batch norms into the convolutions before them."""

import numpy as np

from nmcompile.passes.graphs.interface import Graph, Note, Op, PassResult, Value


class FoldBatchNorm:
    """Multiply a batch norm into the weights of the layer that feeds it.

    With y = scale[c] * x + shift[c] after x = W * input + b, the layer becomes
    W' = scale[o] * W, b' = scale[o] * b + shift[o], computed in float64.

    Legal cases:

    1. A convolution with constant weights whose output only the batch norm reads.
    2. A matrix product with constant weights, of rank 2, whose output only the batch norm reads.

    Any other batch norm stays, with a note that says why. A whole row of weights is scaled by one
    number, so every sparsity pattern survives.
    """

    name = "fold_batchnorm"

    def call(self, graph: Graph) -> PassResult:
        """Run on `graph` in place until no batch norm can be folded."""
        modified = False
        while self._scan(graph):
            modified = True
        producers = {op.output: op for op in graph.ops()}
        notes = [
            Note(op.name, f"batch norm stays: {_obstacle(graph, op, producers)}", left=True)
            for op in producers.values()
            if op.kind == "batch_norm"
        ]
        return PassResult(graph, modified, tuple(notes))

    def _scan(self, graph: Graph) -> bool:
        """Fold at most one batch norm into every layer; the snapshot of a layer is then stale."""
        producers = {op.output: op for op in graph.ops()}
        done: set[Value] = set()
        for norm in producers.values():
            if norm.kind != "batch_norm" or norm.inputs[0] in done:
                continue
            if _obstacle(graph, norm, producers) is None:
                layer = producers[norm.inputs[0]]
                _fold(graph, layer, norm)
                done.update((layer.output, norm.output))
        return bool(done)


def _obstacle(graph: Graph, norm: Op, producers: dict[Value, Op]) -> str | None:
    """Why the batch norm cannot be folded, or None."""
    layer = producers.get(norm.inputs[0])
    if layer is None or layer.kind not in ("conv", "linear"):
        found = "an input of the model" if layer is None else layer.where
        return f"it does not follow a convolution with constant weights, but {found}"
    readers = graph.uses(layer.output)
    if readers != 1:
        return f"the output of {layer.name} has {readers} readers"
    if layer.kind == "linear" and len(graph.shape(layer.output) or ()) != 2:
        return f"its channels are not those of {layer.name}"
    return None


def _fold(graph: Graph, layer: Op, norm: Op) -> None:
    assert layer.weight is not None and norm.affine is not None
    scale, shift = norm.affine.scale, norm.affine.shift
    weight = layer.weight.astype(np.float64)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    graph.replace(norm.output, layer.output)
    graph.set_weight(layer, weight, bias)
