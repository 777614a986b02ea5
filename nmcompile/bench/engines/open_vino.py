"""OpenVINO on the CPU, set up for latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.bench.engines.engine import Array, Engine
from nmcompile.errors import DeclinedError


class OpenVino(Engine):
    """The precision is a subclass's: by itself OpenVINO takes bfloat16 where the CPU has it.

    precision: of what is in float32 in the model; "" leaves it to OpenVINO.
    """

    precision: str

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load `model` for fixed input shapes, given in the model's order."""
        import openvino

        core: Any = openvino.Core()
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.precision == "bf16" and "BF16" not in capable:
            raise DeclinedError(
                "OpenVINO computes in bfloat16 only where the CPU does (AVX512_BF16 or AMX), found "
                f"{', '.join(capable)}; measure openvino-f32 here"
            )
        read = core.read_model(str(model))
        ports = zip(read.inputs, shapes.values(), strict=True)
        read.reshape({port: list(shape) for port, shape in ports})
        self.version = openvino.__version__.partition("-")[0]
        self.inputs = [port.get_any_name() for port in read.inputs]
        self._model = core.compile_model(
            read,
            "CPU",
            {
                **({"INFERENCE_PRECISION_HINT": self.precision} if self.precision else {}),
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._request = self._model.create_infer_request()

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order, in OpenVINO's own memory."""
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        return [np.asarray(results[port]) for port in self._model.outputs]

    def close(self) -> None:
        """Free request and model."""
        del self._request, self._model


class OpenVinoF32(OpenVino):
    """In float32, as the artifacts."""

    precision = "f32"


class OpenVinoBf16(OpenVino):
    """In bfloat16, where the CPU has instructions for it."""

    precision = "bf16"


class OpenVinoInt8(OpenVino):
    """A quantised model: convolutions and products run on integers, the rest as is fastest.

    Seen in its profile of a ResNet-50 in Q/DQ form: all 53 convolutions are `brgconv_avx512_I8`.
    """

    precision = ""
