"""Linear maps along one axis, such as resizing, as sums of weighted gathers."""

from dataclasses import dataclass

import numpy as np

from nmcompile.passes.graphs.interface import Array


@dataclass(frozen=True, eq=False)
class Tap:
    """One term of every output element: `input[index[i]] * weight[i]`.

    index: of the input element for each output element, int64.
    weight: what that is multiplied with, float32; None for ones.
    """

    index: Array
    weight: Array | None


def taps_of(matrix: Array) -> list[Tap]:
    """The terms of a map given by its matrix, (outputs, inputs).

    There are as many as the fullest row has non-zeros. Rows with fewer repeat their last element
    with weight 0; an empty matrix row is an output of zero.
    """
    used = matrix != 0
    count = max(int(used.sum(1).max()), 1)
    # A stable sort puts the used elements of each row first, in their order.
    order = np.argsort(~used, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(matrix, order, 1).astype(np.float32)
    last = np.maximum(used.sum(1) - 1, 0)[:, None]
    rank = np.minimum(np.arange(count)[None], last)
    indices = np.take_along_axis(order, rank, 1).astype(np.int64)
    ones = [bool((weights[:, k] == 1).all()) for k in range(count)]
    return [Tap(indices[:, k], None if ones[k] else weights[:, k]) for k in range(count)]
