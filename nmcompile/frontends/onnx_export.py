"""Torch models as ONNX files, for engines and tools that load those."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

from nmcompile.errors import ModelError
from nmcompile.frontends.source import SourceModel


def onnx_bytes(source: SourceModel) -> bytes:
    """An opened model as an ONNX file, as its passes have left it.

    Raises:
        ModelError: torch cannot export it, or it does not fit one file.
    """
    native = source.native()
    if source.kind == "onnx":
        return serialized(native, source.title)
    import torch

    examples = [
        torch.zeros(shape, dtype=getattr(torch, dtype)) for _, shape, dtype in source.inputs
    ]
    names = [name for name, _, _ in source.inputs]
    return _unwrapped(export_onnx(_by_position(native), examples, names, source.outputs))


def serialized(proto: Any, title: str) -> bytes:
    """The contents of an ONNX file.

    Args:
        proto: an `onnx.ModelProto`.
        title: what messages call it.

    Raises:
        ModelError: it does not fit one file.
    """
    try:
        content: bytes = proto.SerializeToString()
    except Exception as error:  # protobuf's implementations raise different ones
        raise ModelError(
            f"{title} cannot be written as one ONNX file of at most 2 GB: {error}; compile it "
            "instead, or fold it in Python with nmcompile.fold and save it with external data"
        ) from error
    return content


def export_onnx(
    model: Any, examples: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """The file's contents.

    Args:
        model: a torch module; called with `examples` by position.
        examples: tensors of the shapes to fix.
        inputs: what to call them.
        outputs: what to call what is returned.

    Raises:
        ModelError: torch cannot export it.
    """
    import torch

    stream = io.BytesIO()
    try:
        # The exporter prints, and warns of its successor, which takes ten times as long.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                tuple(examples),
                stream,  # type: ignore[arg-type]
                input_names=list(inputs),
                output_names=list(outputs),
                dynamo=False,
                opset_version=17,
            )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the torch model cannot be exported to ONNX: {lines[0]}; export it by hand "
            "and name the file, or measure torch only"
        ) from error
    return stream.getvalue()


def arguments(module: Any, values: Sequence[Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """How an exported module is called with values in the order of its inputs.

    By the names of the original forward, which may not be those of the graph: torch renames an
    argument that is called "input".
    """
    from torch.utils import _pytree

    spec = getattr(module.graph._codegen, "pytree_info", None)
    if spec is None:
        return values, {}
    args, kwargs = _pytree.tree_unflatten(list(values), spec.in_spec)
    return args, kwargs


_WRAPPED = "module."


def _unwrapped(content: bytes) -> bytes:
    """The file of `_by_position(module)` with the names that the parameters have in `module`."""
    import onnx

    proto = onnx.load_model_from_string(content)
    taken = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    renamed = {}
    for tensor in proto.graph.initializer:
        name = tensor.name.removeprefix(_WRAPPED)
        if name not in taken:
            renamed[tensor.name] = tensor.name = name
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return serialized(proto, "the exported model")


def _by_position(module: Any) -> Any:
    """An exported module that is called with its inputs in their order."""
    import torch

    class ByPosition(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: torch.Tensor) -> Any:
            args, kwargs = arguments(module, values)
            return self.module(*args, **kwargs)

        def train(self, mode: bool = True) -> Self:
            # The exporter calls this; modules that torch.export made refuse it.
            self.training = mode
            return self

    return ByPosition().eval()
