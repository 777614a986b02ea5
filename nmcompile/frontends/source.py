"""One door for every kind of model; each framework is imported only for its own models."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nmcompile.errors import ModelError
from nmcompile.passes.checks.dtypes import check_dtypes
from nmcompile.passes.checks.sizes import check_module
from nmcompile.passes.graphs.interface import Graph
from nmcompile.quiet import quiet


@dataclass(frozen=True, eq=False)
class SourceModel:
    """An opened model with fixed input shapes.

    Attributes:
        kind: the framework it came from.
        title: a file name or class, for messages and manifests.
        graph: what passes edit in place; everything below follows the edits.
        inputs: (name, shape, numpy dtype name) in calling order.
        outputs: names, in the order of the returned tensors.
        model_shapes: of the weights as they were opened, of layers that are smaller now.
    """

    kind: Literal["torch", "onnx"]
    title: str
    graph: Graph
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: tuple[str, ...]
    model_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def native(self) -> Any:
        """The model in its framework: `torch.fx.GraphModule` or `onnx.ModelProto`."""
        return self.graph.native()

    def to_relax(self) -> Any:
        """A `tvm.IRModule` whose `main` takes `inputs`, with all weights as constants.

        Raises:
            ModelError: the model computes in another precision than float32.
            ShapeError: a tensor is too large to be counted.
            UnsupportedOperatorError: TVM cannot import an operator.
        """
        check_dtypes(self.graph, {name: dtype for name, _, dtype in self.inputs})
        with quiet():
            module = self._import()
        check_module(module)
        return module

    def _import(self) -> Any:
        if self.kind == "torch":
            from nmcompile.frontends import torch_frontend

            return torch_frontend.to_relax(self.native())
        from nmcompile.frontends import onnx_frontend
        from nmcompile.passes.graphs.onnx.graph import OnnxGraph

        assert isinstance(self.graph, OnnxGraph)
        return onnx_frontend.to_relax(self.graph.model)


def open_model(
    model: Any, *, example_inputs: Any = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> SourceModel:
    """Open a torch or ONNX model.

    Args:
        model: `torch.nn.Module`, `torch.export.ExportedProgram`, `torch.fx.GraphModule`, the path
            of an ONNX file, or an `onnx.ModelProto`. None of them is changed.
        example_inputs: for torch models, a tensor, a tuple of arguments, or a mapping of keyword
            arguments, of the shapes to compile for.
        shapes: dimensions by input name, for ONNX inputs that leave some open.

    Raises:
        ModelError: the object is no model, or cannot be read or exported.
        ShapeError: an input shape is open or contradictory.
        UnsupportedOperatorError: the model holds an operator that its standard does not know.
    """
    if isinstance(model, (str, os.PathLike)):
        return _open_onnx(os.fspath(model), str(os.fspath(model)), shapes)
    # Whoever holds an object of a framework has imported that framework already.
    if "torch" in sys.modules:
        from nmcompile.frontends import torch_frontend
        from nmcompile.passes.graphs.fx.graph import FxGraph

        if torch_frontend.is_torch_model(model):
            module = torch_frontend.to_graph(model, example_inputs, shapes)
            return SourceModel(
                kind="torch",
                title=type(model).__name__,
                graph=FxGraph(module),
                inputs=tuple(torch_frontend.input_specs(module)),
                outputs=tuple(torch_frontend.output_names(module)),
            )
    if type(model).__module__.startswith("onnx"):
        import onnx

        if isinstance(model, onnx.ModelProto):
            return _open_onnx(model, model.graph.name or "ModelProto", shapes)
    raise ModelError(
        f"cannot open an object of type {type(model).__module__}.{type(model).__qualname__}: "
        "expected a torch.nn.Module, ExportedProgram, GraphModule, onnx.ModelProto, or the path "
        "of an ONNX file"
    )


def _open_onnx(source: Any, title: str, shapes: Mapping[str, Sequence[int]] | None) -> SourceModel:
    from nmcompile.frontends import onnx_frontend
    from nmcompile.passes.graphs.onnx.graph import OnnxGraph

    loaded = onnx_frontend.load(source, shapes)
    return SourceModel(
        kind="onnx",
        title=title,
        graph=OnnxGraph(loaded),
        inputs=tuple(onnx_frontend.input_specs(loaded)),
        outputs=tuple(onnx_frontend.output_names(loaded)),
    )
