"""ONNX models in: files (weights in external files too) and `onnx.ModelProto` objects."""

import contextlib
import gc
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from nmcompile.errors import ModelError, NmcompileError, ShapeError, UnsupportedOperatorError
from nmcompile.frontends.accepted_forms import make_plain
from nmcompile.frontends.onnx_rules import check_nodes
from nmcompile.frontends.tensor_data import check_tensor_data
from nmcompile.model_files import check_model_file
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.contributed.forms import adopt, rewrite_transformers
from nmcompile.passes.operators.onnx.integers.forms import opset_for, rewrite_integers
from nmcompile.passes.operators.onnx.recurrent import OURS, STEPS
from nmcompile.passes.operators.onnx.settle import settle
from nmcompile.wording import way

OLDEST_OPSET = 11
"""Models of older operator sets are converted to this one, quantised ones to a later one."""

LARGE = 1 << 16
"""Bytes of a weight that are worth not to be copied."""

# Whoever configures logging sees what they say; standard error is not written to otherwise.
for _name in ("onnx_ir", "onnxscript"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_NORMALISE = (
    InlinePass(),
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    RemoveInitializersFromInputsPass(),
    TopologicalSortPass(),
)


def load(
    source: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> ir.Model:
    """Read a model, fix its input shapes, and bring it into the form that `OnnxGraph` expects.

    Args:
        source: a path, or a model in memory (which is not changed).
        shapes: dimensions by input name, for inputs that leave some open.

    Raises:
        ModelError: not an ONNX model, a damaged file, external data missing, or an operator set
            that cannot be converted.
        ShapeError: an input shape is open, or `shapes` contradicts the model.
        UnsupportedOperatorError: an operator that the ONNX standard does not know.
    """
    if isinstance(source, onnx.ModelProto):
        title, path, proto = "the ONNX model", None, onnx.ModelProto()
        # onnx_ir reads tensors in place, and renaming one would show in the caller's model.
        proto.CopyFrom(source)
    else:
        path = Path(source)
        title, proto = f"model file {path}", _read(path)
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        raise ModelError(
            f"{title} is not an ONNX model: expected a graph with outputs and an operator set, "
            "found none; export the model again, or check that the file is the right one"
        )
    make_plain(proto, title)
    check_tensor_data(proto, path, title)
    model = _in_memory(proto, Path() if path is None else path.parent, title)
    model = _at_least_oldest_opset(model, title)
    adopt(model)
    _check_operators(model, title)
    try:
        for step in _NORMALISE:
            step(model)
    except Exception as error:
        raise _invalid(title, error) from error
    _fix_shapes(model, shapes or {}, title)
    _check(model, title)
    graph = OnnxGraph(model)
    rewrite_integers(graph)
    rewrite_transformers(graph)
    check_nodes(model, title)
    return model


def input_specs(model: ir.Model) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and numpy dtype name of every input, in order."""
    specs = []
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        specs.append((str(value.name), tuple(value.shape.numpy()), value.dtype.numpy().name))
    return specs


def output_names(model: ir.Model) -> list[str]:
    """Names of the graph outputs, in order."""
    return [str(value.name) for value in model.graph.outputs]


def to_relax(model: ir.Model) -> Any:
    """Import a copy into Relax with every initializer a constant; returns a `tvm.IRModule`.

    `main` takes the inputs of `input_specs` in their order (TVM may respell their names); one
    output is returned bare, several as a tuple.

    Raises:
        UnsupportedOperatorError: TVM has no conversion for an operator; names the node.
    """
    from tvm import relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    from nmcompile.passes.lowering.matching.recurrent import recurrent_call

    proto, weights = _apart(_settled(model))

    class Importer(ONNXGraphImporter):  # type: ignore[misc]
        """Takes large weights as they lie in memory: a protobuf copies them at every step."""

        def _parse_graph_initializers(self, graph: onnx.GraphProto) -> None:
            super()._parse_graph_initializers(graph)
            self._nodes.update((name, relax.const(array)) for name, array in weights.items())

        def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
            theirs = [node for node in graph.node if node.domain != OURS]
            super()._check_for_unsupported_ops(onnx.GraphProto(node=theirs))

        def _convert_operator(
            self, op_name: str, inputs: Sequence[Any], attrs: dict[str, Any], opset: int
        ) -> Any:
            if op_name != STEPS:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            kind, direction = (attrs[name].decode() for name in ("kind", "direction"))
            flags = {name: bool(attrs[name]) for name in ("cells", "reset_first")}
            return self.bb.emit(recurrent_call(inputs, kind, direction, **flags))

    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    # The importer prints what it is about to raise.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            # What `from_onnx` does besides is to check the model, once more.
            importer = Importer(shapes, "float32", keep_params_in_input=False)
            return importer.from_onnx(proto.graph, opset)
        except Exception as error:
            refusal = _unsupported(proto, error)
            # What the importer leaves half-built complains when it is freed: now, and not later.
            earlier: BaseException | None = error
            while earlier is not None:
                earlier.__traceback__ = None
                earlier = earlier.__context__
            gc.collect()
            raise refusal from error


def _settled(model: ir.Model) -> ir.Model:
    """A copy in operators that are believed in; the weights are shared.

    Constant zero padding in front of convolutions becomes part of them: TVM imports Pad as a
    function of its own, which the lowering could not look into.
    """
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule

    copy = model.clone()
    RewriteRuleSet([fuse_pad_into_conv_rule]).apply_to_model(copy)
    settle(OnnxGraph(copy))
    return copy


def _apart(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """The model without its large weights, which it loses, and those by name."""
    weights = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and _is_large(tensor):
            weights[name] = tensor.numpy()
            del model.graph.initializers[name]
    return ir.to_proto(model), weights


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes > LARGE and tensor.dtype.numpy().kind in "biuf"


def _read(path: Path) -> onnx.ModelProto:
    check_model_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model file {path} cannot be read: {error.strerror or error}; check the path"
        ) from error
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:
        raise ModelError(
            f"model file {path} is not an ONNX model or is truncated: expected an ONNX protobuf, "
            f"found {len(content)} bytes that do not parse ({error}); export or copy it again"
        ) from error


def _opened(proto: onnx.ModelProto) -> ir.Model:
    """The model, its large weights in arrays: protobuf copies one each time it is looked at."""
    model = ir.from_proto(proto)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.serde.TensorProtoTensor) and _is_large(tensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return model


def _in_memory(proto: onnx.ModelProto, folder: Path, title: str) -> ir.Model:
    try:
        model = _opened(proto)
    except Exception as error:
        raise ModelError(
            f"{title} is damaged: {_first_line(error)}; export or copy it again"
        ) from error
    ir.external_data.set_base_dir(model.graph, folder)
    try:
        return ir.external_data.load_to_model(model)
    except Exception as error:
        raise ModelError(
            f"external data of {title} cannot be read: {_first_line(error)}; keep it in the "
            "model's own folder"
        ) from error


def _at_least_oldest_opset(model: ir.Model, title: str) -> ir.Model:
    found = model.graph.opset_imports.get("", OLDEST_OPSET)
    wanted = max(OLDEST_OPSET, opset_for(model))
    if found >= wanted:
        return model
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), wanted)
        return _opened(proto)
    except Exception as error:
        if found >= OLDEST_OPSET:
            return model  # what needs the later one is refused by name
        raise ModelError(
            f"{title} uses ONNX opset {found}: expected {wanted} or later, and conversion "
            f"fails ({_first_line(error)}); export it again with a newer opset"
        ) from error


def _check_operators(model: ir.Model, title: str) -> None:
    for node in model.graph.all_nodes():
        if node.op_identifier() in model.functions:
            continue
        version = model.graph.opset_imports.get(node.domain, 0)
        # A name that is no text is handed on as bytes.
        sound = isinstance(node.op_type, str) and 0 < version < 1 << 31
        if node.domain == "" and not (
            sound and onnx.defs.has(node.op_type, max_inclusive_version=version)
        ):
            raise UnsupportedOperatorError(
                f"{title}: node {node.name or node.outputs[0].name} has the operator "
                f"{node.op_type}, which ONNX opset {version} does not have; replace the operator, "
                "or export the model again with the right opset"
            )


def _check(model: ir.Model, title: str) -> None:
    try:
        # Inputs instead of large weights: the checker would copy them, and their data is checked.
        proto, weights = _apart(model.clone())
        for name, array in weights.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        for output in proto.graph.output:
            # Where inference fails too, a missing shape is no reason to refuse: runtimes take that.
            if not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(proto)
    except Exception as error:
        raise _invalid(title, error) from error


def _invalid(title: str, error: Exception) -> ModelError:
    return ModelError(f"{title} is not a valid ONNX model: {_first_line(error)}; export it again")


def _say_shape(name: str, dims: str) -> str:
    """How to say the shape `1,3,8,8`."""
    listed = dims.replace(",", ", ") + "," * ("," not in dims)
    return way(f"--shape {name}={dims}", f"shapes={{{name!r}: ({listed})}}")


def _fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]], title: str) -> None:
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name in shapes:
        if name not in inputs:
            raise ShapeError(
                f"{title} has no input {name}: expected one of {', '.join(inputs) or 'none'}; "
                f"correct the name given with {way('--shape', 'shapes')}"
            )
    changed = False
    for name, value in inputs.items():
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{title}: input {name} is not a tensor; only tensors can be inputs")
        given = tuple(int(dim) for dim in shapes[name]) if name in shapes else None
        declared = None if value.shape is None else list(value.shape)
        if given is None:
            if declared is None or not all(isinstance(dim, int) for dim in declared):
                raise ShapeError(
                    f"{title}: input {name} has the open shape {_spell(declared)}; expected fixed "
                    f"dimensions: say {_say_shape(name, _example(declared))}"
                )
            given = tuple(int(cast(int, dim)) for dim in declared)
        else:
            fits = declared is None or (
                len(declared) == len(given)
                and all(
                    d == g or not isinstance(d, int) for d, g in zip(declared, given, strict=True)
                )
            )
            if not fits:
                raise ShapeError(
                    f"{title}: input {name} is declared as {_spell(declared)}, but "
                    f"{_say_shape(name, ','.join(map(str, given)))} contradicts that; change the "
                    "open dimensions only"
                )
            changed |= declared != list(given)
        if any(dim < 1 for dim in given):
            raise ShapeError(
                f"{title}: input {name} has the shape {_spell(given)}; expected dimensions of at "
                f"least 1: say {_say_shape(name, _example(declared))}"
            )
        value.shape = ir.Shape(given)
    if changed:
        # What was inferred for open dimensions would contradict the fixed ones.
        for node in model.graph:
            for output in node.outputs:
                output.shape = None
    ShapeInferencePass(strict_mode=False)(model)


def _unsupported(proto: onnx.ModelProto, error: Exception) -> UnsupportedOperatorError:
    node = _node_in_traceback(error.__traceback__)
    nodes = [node] if node is not None else []
    named = re.search(r"not supported for frontend ONNX: (.*)", str(error))
    if named is not None:
        types = {name.strip() for name in named[1].split(",")}
        nodes = [node for node in proto.graph.node if node.op_type in types]
    spelled = ", ".join(f"{n.op_type} (node {n.name or n.output[0]})" for n in nodes[:5])
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    refusal = UnsupportedOperatorError(
        f"the model cannot be imported into TVM: {spelled or 'unknown operator'}{more}: "
        f"{_first_line(error)}; replace the operator, or export the model without that part"
    )
    refusal.node = next((node.name or node.output[0] for node in nodes), "")
    return refusal


def _node_in_traceback(trace: TracebackType | None) -> onnx.NodeProto | None:
    """The node that the importer's loop was at: it does not say so itself."""
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, onnx.NodeProto):
            return node
        trace = trace.tb_next
    return None


def _spell(dims: Sequence[Any] | None) -> str:
    if dims is None:
        return "of unknown rank"
    return "(" + ", ".join(str(getattr(dim, "value", dim) or "?") for dim in dims) + ")"


def _example(dims: Sequence[Any] | None) -> str:
    if dims is None:
        return "1,3,224,224"
    return ",".join(str(dim) if isinstance(dim, int) and dim > 0 else "1" for dim in dims)


def _first_line(error: Exception) -> str:
    if isinstance(error, NmcompileError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
