"""What ONNX's inference as the frontend runs it leaves open: sequences, and operators of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from nmcompile.runtime.rest import import_onnxruntime, open_session

if TYPE_CHECKING:
    from nmcompile.passes.graphs.onnx.graph import OnnxGraph

LARGE = 1 << 16
"""Bytes of a weight that inference does without."""

_DTYPES = {
    f"tensor({name})": dtype
    for name, dtype in {
        "float": ir.DataType.FLOAT,
        "double": ir.DataType.DOUBLE,
        "string": ir.DataType.STRING,
        **{
            kind.name.lower(): kind
            for kind in (
                *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
                *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
                *(ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL),
            )
        },
    }.items()
}
"""By what onnxruntime calls them."""


def complete_types(graph: OnnxGraph) -> None:
    """Give the values of a main graph the types that they have, in place.

    1. What is a sequence or an optional is said to be one: onnx_ir takes it for a tensor.
    2. What stands behind an operator that ONNX does not know is asked of onnxruntime, if that is
       installed and knows it.
    """
    values = {str(value.name): value for value in _values(graph)}
    light = _light(graph)
    with contextlib.suppress(Exception):  # no inference: then nothing is known
        for found in onnx.shape_inference.infer_shapes(light, data_prop=True).graph.value_info:
            kind = found.type.WhichOneof("value")
            if found.name in values and kind not in (None, "tensor_type"):
                values[found.name].type = ir.serde.deserialize_type_proto_for_type(found.type)
                values[found.name].shape = None
    foreign = any(node.domain != "" for node in graph.model.graph)
    unknown = [value for value in values.values() if value.dtype is None or value.shape is None]
    if foreign and unknown:
        _ask_onnxruntime(graph, unknown)


def _values(graph: OnnxGraph) -> Iterator[ir.Value]:
    for node in graph.model.graph:
        yield from (value for value in node.outputs if value.name)


def _light(graph: OnnxGraph) -> onnx.ModelProto:
    """The model without its large weights and without what was inferred."""
    proto = graph.native()
    proto.graph.ClearField("value_info")
    large = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > LARGE]
    small = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) <= LARGE]
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large
    )
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(small)
    return proto


def _ask_onnxruntime(graph: OnnxGraph, unknown: list[ir.Value]) -> None:
    proto = graph.native()
    results = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=value.name) for value in unknown if value.name not in results
    )
    try:
        session = open_session(import_onnxruntime("the model"), proto.SerializeToString(), 1)
    except Exception:  # it has a class for every kind of failure; what it says is said later
        return
    found = {value.name: value for value in session.get_outputs()}
    for value in unknown:
        answer = found[value.name]
        dtype = _DTYPES.get(answer.type)
        if dtype is None:
            continue
        value.type = ir.TensorType(dtype)
        # Of an unknown rank it says the same as of a scalar.
        if value.shape is None and answer.shape:
            value.shape = ir.Shape(answer.shape)
