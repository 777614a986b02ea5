"""Whether onnxruntime takes the parts that it is given, and what it says of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmcompile.errors import DeviceError, UnsupportedOperatorError
from nmcompile.frontends.onnx_export import serialized
from nmcompile.quiet import quiet
from nmcompile.runtime.rest import import_onnxruntime, open_session
from nmcompile.runtime.specs import DTYPES, WIDE, TensorSpec
from nmcompile.runtime.strict_json import OPEN

if TYPE_CHECKING:
    import onnx

    from nmcompile.segments.divide import Part


def version() -> str:
    """Of the onnxruntime that is installed here; "" where none is."""
    try:
        return str(import_onnxruntime("").__version__)
    except DeviceError:
        return ""


def check_rest(part: Part, title: str) -> tuple[bytes, ...]:
    """The ONNX files of a part, which ONNX's checker and onnxruntime, if it is here, have accepted.

    Args:
        part: one of the rest.
        title: of the model, for messages.

    Returns:
        One for each shape of the model; all the same where the part is the same but for sizes.

    Raises:
        UnsupportedOperatorError: onnxruntime does not take it; says why it was given it.
        ModelError: it does not fit one file.
    """
    protos = _for_all(part.protos)
    contents = tuple(serialized(proto, title) for proto in protos)
    try:
        for content, proto in dict(zip(contents, protos, strict=True)).items():
            _check(proto)
            if version():
                with quiet():
                    open_session(import_onnxruntime(title), content, 1)
    except Exception as error:  # both have classes for every kind of failure
        reason = next(iter(part.reasons.values()))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedOperatorError(
            f"the model cannot be compiled: {reason}; and onnxruntime cannot run that part either "
            f"({lines[0]}): replace the operator, or export the model without it"
        ) from error
    return contents


def _for_all(protos: Sequence[onnx.ModelProto]) -> Sequence[onnx.ModelProto]:
    """Parts that differ in the sizes of tensors alone, without these; others as they are.

    So weights in them are there once. onnxruntime finds the sizes when it runs.
    """
    if len(protos) == 1:
        return protos
    opened = [_without_sizes(proto, protos) for proto in protos]
    return opened if all(proto == opened[0] for proto in opened) else protos


def _without_sizes(proto: onnx.ModelProto, all_: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """A part whose inputs and outputs have the sizes that they have in all shapes."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    result.graph.ClearField("value_info")
    for kind in ("input", "output"):
        for place, value in enumerate(getattr(result.graph, kind)):
            types = [getattr(other.graph, kind)[place].type for other in all_]
            kinds = [each.tensor_type for each in types]
            if any(each.WhichOneof("value") != "tensor_type" for each in types):
                continue
            shape = value.type.tensor_type.shape
            if any(len(each.shape.dim) != len(shape.dim) for each in kinds):
                value.type.tensor_type.ClearField("shape")
                continue
            for axis, dim in enumerate(shape.dim):
                if any(each.shape.dim[axis] != dim for each in kinds):
                    dim.Clear()
    return result


def _check(proto: onnx.ModelProto) -> None:
    import onnx

    checked = onnx.ModelProto()
    checked.CopyFrom(proto)
    for value in (*checked.graph.input, *checked.graph.output):
        # The checker wants shapes where there are none to be known; runtimes do without.
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(checked)


def output_specs(part: Part, number: int, wanted: set[str]) -> dict[str, TensorSpec]:
    """Name, shape and dtype of what a part of the rest makes, as far as inference knows them.

    Args:
        part: one of the rest.
        number: of the shape of the model.
        wanted: outputs of the model, and what parts of ours read: others go from onnxruntime to
            onnxruntime, whatever they are.

    Raises:
        UnsupportedOperatorError: an output is no tensor of numbers.
    """
    return {name: _spec(part.protos[number], name) for name in part.outputs if name in wanted}


def _spec(proto: onnx.ModelProto, name: str) -> TensorSpec:
    import onnx

    value = next(value for value in proto.graph.output if value.name == name)
    kind = value.type.tensor_type
    found = ""
    if value.type.WhichOneof("value") != "tensor_type":
        found = f"a {value.type.WhichOneof('value') or 'value of unknown type'}"
    elif kind.elem_type == onnx.TensorProto.UNDEFINED:
        found = "one of an unknown type"
    else:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)
        if kind.elem_type == onnx.TensorProto.STRING or dtype not in {*DTYPES, *WIDE}:
            found = f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()}"
    if found:
        raise UnsupportedOperatorError(
            f"output {name}: expected a tensor of {', '.join((*DTYPES, *WIDE))}, found {found}: "
            "leave it out of the model"
        )
    shape = tuple(dim.dim_value if dim.dim_value > 0 else OPEN for dim in kind.shape.dim)
    return TensorSpec(name, shape, dtype, any_shape=not kind.HasField("shape"))
