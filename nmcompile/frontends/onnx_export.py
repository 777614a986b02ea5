"""Torch models as ONNX files, for engines and tools that load those."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from nmcompile.errors import ModelError
from nmcompile.frontends.source import SourceModel


def onnx_bytes(source: SourceModel) -> bytes:
    """An opened model as an ONNX file, as its passes have left it.

    Of a torch model by tracing, which writes what most tools read, or by torch.export where sizes
    depend on values, which tracing would take for constants.

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
    module = _by_position(native)
    if computes_sizes(native):
        return _unwrapped(_export_program(module, examples, names, source.outputs))
    try:
        return _unwrapped(export_onnx(module, examples, names, source.outputs))
    except ModelError as error:
        try:
            return _unwrapped(_export_program(module, examples, names, source.outputs))
        except ModelError:
            raise error from None


def computes_sizes(module: Any) -> bool:
    """Whether the size of a tensor of an FX graph depends on values."""
    import torch

    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)

    def depends(value: Any) -> bool:
        return isinstance(value, symbols) or (
            isinstance(value, torch.Tensor)
            and any(isinstance(extent, torch.SymInt) for extent in value.shape)
        )

    leaves = torch.utils._pytree.tree_leaves
    return any(
        depends(value) for node in module.graph.nodes for value in leaves(node.meta.get("val"))
    )


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
        with _unlogged(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
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


def _export_program(
    model: Any, examples: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """As `export_onnx`, with sizes that depend on values; takes a second or two.

    Raises:
        ModelError: torch cannot export it.
    """
    import torch

    try:
        with _silenced("torch.onnx"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, tuple(examples), strict=False)
            with contextlib.redirect_stdout(io.StringIO()):
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    opset_version=18,
                    verbose=False,
                )
        assert exported is not None
        proto = exported.model_proto
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the torch model cannot be exported to ONNX: {lines[0]}; export it by hand and name "
            "the file"
        ) from error
    return serialized(proto, "the exported model")


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from writing a graph it cannot export to the process's output, where JSON may go.

    Its switch for that is on whatever it is told: it asks a function for its truth, not its result.
    """
    from torch import _C

    before = getattr(_C, "_jit_onnx_log", None)
    if before is None:
        yield
        return
    _C._jit_onnx_log = lambda *parts: None
    try:
        yield
    finally:
        _C._jit_onnx_log = before


@contextlib.contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Let a library's loggers say nothing but errors, for a while."""
    loggers = [
        logger
        for key, logger in list(logging.Logger.manager.loggerDict.items())
        if key.startswith(name) and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
