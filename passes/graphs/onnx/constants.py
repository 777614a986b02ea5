"""Evaluation of single ONNX operators on numpy arrays, for constant folding.

The reference evaluator of the onnx package is the meaning of the operators and is always there;
the operators that it runs element by element in Python are replaced by vectorised ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_scatter_elements import ScatterElements as _SlowScatterElements

from nmcompile.passes.graphs.interface import Array

RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


class ScatterElements(_SlowScatterElements):
    """`put_along_axis`; duplicate indices, which need a reduction, take the slow way."""

    def _run(
        self,
        data: Array,
        indices: Array,
        updates: Array,
        axis: int | None = None,
        reduction: str | None = None,
    ) -> tuple[Array]:
        axis = 0 if axis is None else axis
        fits = all(
            i == d
            for k, (i, d) in enumerate(zip(indices.shape, data.shape, strict=True))
            if k != axis % data.ndim
        )
        if reduction not in (None, "none") or not fits:
            slow: Any = super()
            return cast(tuple[Array], slow._run(data, indices, updates, axis, reduction))
        result = data.copy()
        # Negative indices count from the end, in numpy as in ONNX.
        np.put_along_axis(result, indices, updates, axis)
        return (result,)


class TopK(OpRun):
    """A stable sort, so that of equal values the one with the lower index comes first."""

    op_domain = ""

    def _run(
        self,
        data: Array,
        k: Array,
        axis: int | None = None,
        largest: int | None = None,
        sorted: int | None = None,
    ) -> tuple[Array, Array]:
        axis = -1 if axis is None else axis
        count = int(np.asarray(k).reshape(-1)[0])
        if largest in (None, 1):
            # Negating integers would overflow at the lowest one: sort the reversed array instead.
            length = data.shape[axis]
            order = np.argsort(np.flip(data, axis), axis=axis, kind="stable")
            indices = length - 1 - np.flip(order, axis)
        else:
            indices = np.argsort(data, axis=axis, kind="stable")
        indices = np.take(indices, np.arange(count), axis=axis).astype(np.int64)
        return np.take_along_axis(data, indices, axis), indices


def evaluate(
    node: onnx.NodeProto, feeds: Mapping[str, Array], opset: int
) -> Sequence[Array] | None:
    """Run one operator of the default domain.

    Args:
        node: a node without subgraphs.
        feeds: contents of every input it names.
        opset: version of the default domain.

    Returns:
        One array per output; None where the evaluator cannot run the operator or the result is
        not made of arrays (sequences, optionals).
    """
    # The evaluator knows it from 19 on, where it means what it meant before, and more.
    opset = max(opset, 19) if node.op_type == "DequantizeLinear" else opset
    inputs = [name for name in dict.fromkeys(node.input) if name]
    outputs = [name for name in node.output if name]
    function = onnx.helper.make_function(
        "nmcompile", "node", inputs, outputs, [node], [onnx.helper.make_opsetid("", opset)]
    )
    try:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(function, new_ops=[ScatterElements, TopK])
            results = list(evaluator.run(outputs, dict(feeds), attributes={}))
    except Exception:
        # Evaluators fail in many ways on what they do not implement; an operator that stays in
        # the graph is correct, only slower.
        return None
    found = iter(results)
    arrays = [np.asarray(next(found)) if name else np.empty(0) for name in node.output]
    if any(not isinstance(r, (np.ndarray, np.generic)) for r in results):
        return None
    return arrays
