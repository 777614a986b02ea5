"""What an ONNX model says of its tensors against their data, in files inside its own folder too."""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx

from nmcompile.errors import ModelError

PACKED = {"FLOAT4E2M1": 4, "INT2": 2, "INT4": 4, "UINT2": 2, "UINT4": 4}
"""Bits of the data types of which a byte holds several."""


def check_tensor_data(proto: onnx.ModelProto, path: Path | None, title: str) -> None:
    """Hold every tensor against its data, and external files against what is there.

    Nothing outside of the model's folder is opened or asked for its size.

    Args:
        proto: the model.
        path: its file; None for a model in memory, whose folder is the current one.
        title: what to call it in messages.

    Raises:
        ModelError: a tensor has other data than its shape and type need; or a file is missing,
            too short, no regular file, or outside of the folder.
    """
    folder = Path() if path is None else path.parent
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check(tensor, folder, title)
        else:
            _check_size(tensor, title)


def _check(tensor: onnx.TensorProto, folder: Path, title: str) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    weight, location = tensor.name or "of a node", fields.get("location", "")
    numbers = {}
    for key in ("offset", "length"):
        text = fields.get(key, "0")
        if not (text.isascii() and text.isdecimal() and int(text) < 1 << 63):
            raise ModelError(
                f"{title}: weight {weight} has the {key} {text!r:.80} in its external file; "
                "expected a number of bytes: export it again"
            )
        numbers[key] = int(text)
    path = folder / location
    try:
        contained = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name that is too long
        contained = False
    if not location or not contained:
        raise ModelError(
            f"{title} keeps weight {weight} in the external file {location!r:.200}, which is "
            "outside of the model's own folder and is not opened; put it next to the model"
        )
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise ModelError(
            f"{title} keeps weight {weight} in the external file {path!s:.200}: expected that "
            "file, found none; put it next to the model (an ONNX model in memory must "
            "have its external data loaded)"
        )
    end, size = numbers["offset"] + numbers["length"], path.stat().st_size
    if size < end:
        raise ModelError(
            f"external file {path} is truncated: expected at least {end} bytes for "
            f"weight {weight}, found {size}; copy it again"
        )


def _check_size(tensor: onnx.TensorProto, title: str) -> None:
    weight, dims = tensor.name or "of a node", list(tensor.dims)
    known = tensor.data_type in onnx.TensorProto.DataType.values()
    if not known or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise ModelError(
            f"{title}: weight {weight} has the data type {tensor.data_type}, which this version of "
            "ONNX does not know; export it again"
        )
    if any(dim < 0 for dim in dims):
        raise ModelError(
            f"{title}: weight {weight} has the shape {dims}; expected no negative dimensions"
        )
    count = math.prod(dims)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    bits = PACKED.get(kind)
    if bits is not None:  # several to a byte
        expected, found, unit = -(-count * bits // 8), len(tensor.raw_data), "bytes"
        if not tensor.HasField("raw_data"):
            return
    elif tensor.HasField("raw_data") and kind != "STRING":
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        expected, found, unit = count * size, len(tensor.raw_data), "bytes"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        each = 2 if kind.startswith("COMPLEX") else 1
        expected, found, unit = count * each, len(getattr(tensor, field)), f"values of {field}"
    if expected != found:
        raise ModelError(
            f"{title}: weight {weight} of shape {dims} and type {kind} needs {expected} {unit}, "
            f"found {found}; the model is damaged: export or copy it again"
        )


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, in subgraphs, functions and attributes too."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs
