"""Refuse weights that no kernel can make sense of."""

import numpy as np

from nmcompile.errors import WeightError
from nmcompile.passes.graphs.interface import Graph


def check_weights(graph: Graph) -> None:
    """Check the weights and biases of every convolution and matrix product.

    Raises:
        WeightError: a weight holds NaN or infinity, or has a dimension of size zero; names the
            layer.
    """
    for layer in graph.layers():
        for role, array in (("weight", layer.weight), ("bias", layer.bias)):
            if array is None:
                continue
            if array.size == 0:
                raise WeightError(
                    f"layer {layer.name}: its {role} has the shape {array.shape}; expected "
                    "dimensions of at least 1: remove the layer from the model"
                )
            if array.dtype.kind != "f":
                continue
            bad = array.size - int(np.count_nonzero(np.isfinite(array)))
            if bad:
                first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise WeightError(
                    f"layer {layer.name}: its {role} holds {bad} values that are NaN or infinite, "
                    f"the first at index {first}; expected finite numbers: check the checkpoint "
                    "and the batch norm statistics"
                )
