"""Weights that an ONNX model keeps in files of its own: only inside its own folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from nmcompile.errors import ModelError


def check_external_data(proto: onnx.ModelProto, path: Path | None, title: str) -> None:
    """Hold every reference to an external file against what is there, before any is opened.

    Args:
        proto: the model.
        path: its file; None for a model in memory, whose folder is the current one.
        title: what to call it in messages.

    Raises:
        ModelError: a file is missing, too short, no regular file, or outside of the folder.
    """
    folder = Path() if path is None else path.parent
    # A model that is a link may have its data beside itself or beside what it points to.
    roots = [folder.resolve(), *([] if path is None else [path.resolve().parent])]
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check(tensor, folder, roots, title)


def _check(tensor: onnx.TensorProto, folder: Path, roots: Sequence[Path], title: str) -> None:
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
        real = path.resolve()
        contained = "\0" not in location and any(real.is_relative_to(root) for root in roots)
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name that is too long
        contained = False
    if not location or not contained:
        raise ModelError(
            f"{title} keeps weight {weight} in the external file {location!r:.200}, which is "
            "outside of the model's own folder and is not opened; put it next to the model"
        )
    if not path.is_file():
        raise ModelError(
            f"{title} keeps weight {weight} in the external file {path}: expected that "
            "file, found none; put it next to the model (an ONNX model in memory must "
            "have its external data loaded)"
        )
    end, size = numbers["offset"] + numbers["length"], path.stat().st_size
    if size < end:
        raise ModelError(
            f"external file {path} is truncated: expected at least {end} bytes for "
            f"weight {weight}, found {size}; copy it again"
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
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += (
                [attribute.g, *attribute.graphs] if attribute.HasField("g") else (attribute.graphs)
            )
