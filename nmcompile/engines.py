"""The engines that users run today, behind one interface, to measure against.

Each takes an ONNX file and computes in float32, as the artifacts do.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nmcompile.errors import DeviceError, InputError, ModelError

Array = npt.NDArray[Any]


class Engine(Protocol):
    """A loaded model."""

    @property
    def version(self) -> str:
        """Of the engine's package."""

    @property
    def inputs(self) -> Sequence[str]:
        """Input names in the model's order."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the model's order."""


class OnnxRuntime:
    """onnxruntime on the CPU, all graph optimisations on."""

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load `model`; open dimensions take the shapes of what is run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.version: str = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.inputs: list[str] = [value.name for value in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the model's order."""
        return list(self._session.run(None, dict(inputs)))


class OpenVino:
    """OpenVINO on the CPU in float32; by itself it would compute in bfloat16 where AMX is."""

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load `model` for fixed input shapes, given in the model's order."""
        import openvino

        core = openvino.Core()
        read = core.read_model(str(model))
        ports = zip(read.inputs, shapes.values(), strict=True)
        read.reshape({port: list(shape) for port, shape in ports})
        self.version: str = openvino.__version__.partition("-")[0]
        self.inputs: list[str] = [port.get_any_name() for port in read.inputs]
        self._model = core.compile_model(
            read,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._request = self._model.create_infer_request()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the model's order."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        return [np.array(results[port]) for port in self._model.outputs]


ENGINES: Mapping[str, Callable[[Path, Mapping[str, Sequence[int]], int], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def open_engine(
    name: str, model: Path, shapes: Mapping[str, Sequence[int]], threads: int
) -> Engine:
    """Load an ONNX model into an engine.

    Args:
        name: one of `ENGINES`.
        model: an ONNX file.
        shapes: the shape of every input, in the model's order.
        threads: cores to run on.

    Raises:
        InputError: no such engine.
        DeviceError: the engine is not installed.
        ModelError: the engine does not take the model.
    """
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is unknown; expected one of: {', '.join(ENGINES)}")
    if not model.is_file():
        raise ModelError(f"model file {model} cannot be read: there is no such file")
    try:
        return ENGINES[name](model, shapes, threads)
    except ImportError as error:
        raise DeviceError(
            f"{name} is not installed here ({error}); pip install 'nmcompile[bench]'"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ModelError(f"{name} cannot load {model}: {lines[0]}") from error


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
