"""Forms of ONNX models that are in use, and that the libraries do not take: made plain on reading.

1. Initializers among the graph's inputs, as IR version 3 wanted them.
2. Open dimensions written as a negative number, as Paddle does.
3. Sparse initializers, and constants with a sparse value: the natural form of pruned weights.
4. Slopes of PRelu before opset 7, one per channel, which onnx's version converter leaves as they
   are, although later versions read them along the last axis.
5. Negative axes in a Transpose, as torch's exporter by tracing writes them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from nmcompile.errors import ModelError

OLDEST_IR = 4
"""The first IR version whose initializers need not be inputs."""

NUMPY_BROADCAST = 7
"""The first opset whose operators broadcast as numpy does."""


def make_plain(proto: onnx.ModelProto, title: str) -> None:
    """Change `proto` in place to the same model in the usual form.

    Args:
        proto: the model.
        title: what messages call it.

    Raises:
        ModelError: a sparse tensor that contradicts itself; names it.
    """
    proto.ir_version = max(proto.ir_version, OLDEST_IR)  # form 1
    for graph in _graphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:  # form 2
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")
        for sparse in graph.sparse_initializer:  # form 3
            dense = _densified(sparse, f"{title}: sparse initializer {sparse.values.name}")
            graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
        graph.ClearField("sparse_initializer")
    for nodes in _all_nodes(proto):
        _densify_constants(nodes, title)
        _count_axes_from_the_front(nodes)  # form 5
    version = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    if version < NUMPY_BROADCAST:
        for initializer in proto.graph.initializer:  # form 4
            _align_slope(initializer, proto.graph)


def _align_slope(slope: onnx.TensorProto, graph: onnx.GraphProto) -> None:
    readers = [node for node in graph.node if slope.name in node.input[1:]]
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    found = {
        next((ranks[name] for name in (*node.input[:1], *node.output) if ranks.get(name)), None)
        for node in readers
        if node.op_type == "PRelu"
    }
    rank = found.pop() if len(found) == 1 else None
    if rank is None or len(slope.dims) != 1 or slope.dims[0] == 1:
        return
    slope.dims.extend([1] * (rank - 2))
    for value in graph.input:
        if value.name == slope.name:
            for _ in range(rank - 2):
                value.type.tensor_type.shape.dim.add().dim_value = 1


def _count_axes_from_the_front(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Transpose" and attribute.name == "perm":
                rank = len(attribute.ints)
                attribute.ints[:] = [axis + rank if axis < 0 else axis for axis in attribute.ints]


def _all_nodes(proto: onnx.ModelProto) -> Iterator[Iterable[onnx.NodeProto]]:
    for graph in _graphs(proto.graph):
        yield graph.node
    for function in proto.functions:
        yield function.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _graphs(inner)


def _densify_constants(nodes: Iterable[onnx.NodeProto], title: str) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                where = f"{title}: constant {node.output[0] if node.output else ''}"
                dense = numpy_helper.from_array(_densified(attribute.sparse_tensor, where))
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _densified(sparse: onnx.SparseTensorProto, where: str) -> np.ndarray[Any, Any]:
    """Zeros of shape `dims` with the values at their places: linear, or one row of indices each."""
    shape = tuple(sparse.dims)
    try:
        values = numpy_helper.to_array(sparse.values).reshape(-1)
        indices = numpy_helper.to_array(sparse.indices)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        dense = np.zeros(shape, values.dtype)
        if indices.shape != values.shape or (indices.size and indices.min() < 0):
            raise ValueError(f"{values.size} values, {indices.shape} indices")
        dense.reshape(-1)[indices] = values
    except Exception as error:
        raise ModelError(
            f"{where} contradicts itself: expected as many indices inside of its shape "
            f"{shape} as values, found {error}; export the model again"
        ) from error
    return dense
