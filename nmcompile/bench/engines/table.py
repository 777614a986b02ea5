"""Which engines there are, one row each; loading one of them by its name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nmcompile.bench.engines.engine import summary
from nmcompile.errors import DeviceError, InputError, ModelError, NmcompileError

if TYPE_CHECKING:
    from nmcompile.bench.engines.engine import Array, Engine

Form = Literal["artifact", "onnx", "torch"]
"""What an engine loads: the path of a `.nmc` or ONNX file, or a torch module."""

OURS = "nmcompile"
INT8 = "int8"


@dataclass(frozen=True)
class EngineRow:
    """One engine.

    name: as in `--against` and in results.
    loader: "module:class" under nmcompile.bench.engines; imported when it is used.
    form: of the models that it takes.
    dtype: that it computes in; in int8 it loads the quantised model. Ours is the target's.
    sees_zeros: whether its time depends on the weights, so that it runs with every pattern.
    needs: the module that is imported, "" where something else decides.
    extra: of nmcompile that installs it, "" where none does.
    """

    name: str
    loader: str
    form: Form
    dtype: str
    sees_zeros: bool
    needs: str
    extra: str = "bench"


ENGINES: tuple[EngineRow, ...] = (
    EngineRow(OURS, "ours:Nmcompile", "artifact", "float32", True, "tvm_ffi", ""),
    EngineRow("onnxruntime", "onnx_runtime:OnnxRuntime", "onnx", "float32", False, "onnxruntime"),
    EngineRow("onnxruntime-int8", "onnx_runtime:OnnxRuntime", "onnx", INT8, False, "onnxruntime"),
    EngineRow("openvino-f32", "open_vino:OpenVinoF32", "onnx", "float32", False, "openvino"),
    EngineRow("openvino-bf16", "open_vino:OpenVinoBf16", "onnx", "bfloat16", False, "openvino"),
    EngineRow("openvino-int8", "open_vino:OpenVinoInt8", "onnx", INT8, False, "openvino"),
    EngineRow("torch", "torch_engine:TorchEager", "torch", "float32", False, "torch", "torch"),
    EngineRow(
        "torch-compile", "torch_engine:TorchCompiled", "torch", "float32", False, "torch", "torch"
    ),
    EngineRow("tvm", "tvm_stock:StockTvm", "onnx", "float32", False, "tvm", ""),
    EngineRow("deepsparse", "deep_sparse:DeepSparse", "onnx", "float32", True, "", ""),
    EngineRow("deepsparse-int8", "deep_sparse:DeepSparse", "onnx", INT8, True, "", ""),
)
AS_DEFINED = EngineRow(
    "onnxruntime, not optimised",
    "onnx_runtime:OnnxRuntimeAsDefined",
    "onnx", INT8, False, "onnxruntime",
)  # fmt: skip
"""Not measured: what the outputs of quantised models are held against."""

OTHER_NAMES = {"openvino": "openvino-f32"}


def find_engine(name: str) -> EngineRow:
    """The row of one engine.

    Raises:
        InputError: there is none.
    """
    wanted = OTHER_NAMES.get(name, name)
    for row in ENGINES:
        if row.name == wanted:
            return row
    names = ", ".join(row.name for row in ENGINES)
    raise InputError(f"engine {name!r} is unknown; expected one of: {names}")


def is_installed(row: EngineRow) -> bool:
    """Whether the engine can be expected to load; imports nothing."""
    if row.needs:
        return importlib.util.find_spec(row.needs) is not None
    from nmcompile.bench.engines.deep_sparse import deepsparse_version

    try:
        deepsparse_version()
    except DeviceError:
        return False
    return True


def open_engine(name: str, model: Any, shapes: Mapping[str, Sequence[int]], threads: int) -> Engine:
    """Load a model into an engine; arguments as `open_row`, which takes a row of `ENGINES`.

    Raises:
        InputError: no such engine.
        NmcompileError: as `open_row`.
    """
    return open_row(find_engine(name), model, shapes, threads)


def open_row(
    row: EngineRow, model: Any, shapes: Mapping[str, Sequence[int]], threads: int
) -> Engine:
    """Load a model into an engine.

    Args:
        row: of the engine.
        model: in the row's form.
        shapes: the shape of every input, in the model's order.
        threads: cores to run on.

    Raises:
        DeviceError: the engine is not installed.
        DeclinedError: the engine says that this model is not for it.
        ModelError: the engine does not take the model.
    """
    module, _, attribute = row.loader.partition(":")
    title = model if row.form != "torch" else f"the {type(model).__name__}"
    try:
        loader = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
        engine: Engine = loader(model, shapes, threads)
    except NmcompileError:
        raise
    except ImportError as error:
        package = f"'nmcompile[{row.extra}]'" if row.extra else "nmcompile"
        raise DeviceError(
            f"{row.name} is not installed here ({error}); pip install {package}"
        ) from error
    except Exception as error:  # every engine has exceptions of its own
        raise ModelError(
            f"{row.name} cannot load {title}: {summary(error)}; leave the engine out, or export "
            "the model in another way"
        ) from error
    return engine


def name_inputs(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs by the engine's names: its own where they agree, else in the same order.

    Raises:
        InputError: the engine's model takes another number of inputs.
    """
    if set(engine.inputs) == set(inputs):
        return dict(inputs)
    if len(engine.inputs) != len(inputs):
        raise InputError(
            f"the model that is measured against takes the inputs {', '.join(engine.inputs)}, the "
            f"artifact takes {', '.join(inputs)}; name the model that the artifact was made from"
        )
    return dict(zip(engine.inputs, inputs.values(), strict=True))
