"""The engines that nmcompile is measured against, and the interleaved clock that measures all."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

Array = npt.NDArray[np.float32]
Engine = Callable[[Array], Array]
"""Runs a model with one input and one output."""


def export_onnx(model: nn.Module, x: torch.Tensor) -> bytes:
    """The model as an ONNX file with input x and output y."""
    stream = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            stream,  # type: ignore[arg-type]
            input_names=["x"],
            output_names=["y"],
            dynamo=False,
            opset_version=17,
        )
    return stream.getvalue()


def onnxruntime_engine(model: bytes, threads: int) -> Engine:
    """onnxruntime on the CPU, all graph optimisations on."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads would otherwise spin on into the time of the engine measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


def openvino_engine(model: bytes, threads: int) -> Engine:
    """OpenVINO on the CPU in float32, set up for latency."""
    import openvino

    core: Any = openvino.Core()
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    return lambda x: np.asarray(request.infer([x], share_inputs=True, share_outputs=True)[0])


PEERS: Mapping[str, Callable[[bytes, int], Engine]] = {
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
}


def interleave(
    engines: Mapping[str, Engine],
    x: Array,
    rounds: int,
    *,
    warmup: int = 3,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time all engines round by round, so that a slow moment of the machine hits all of them.

    Before each timed run comes an untimed one of the same engine: it refills the caches, and
    outlasts the spinning threads of the engine before.

    Returns:
        Milliseconds of every round, by engine.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for index in range(warmup + rounds):
        # Every round begins with another engine.
        first = index % len(order)
        for name in order[first:] + order[:first]:
            engines[name](x)
            begin = time.perf_counter()
            engines[name](x)
            elapsed = time.perf_counter() - begin
            if index >= warmup:
                times[name].append(elapsed * 1e3)
        on_round()
    return times
