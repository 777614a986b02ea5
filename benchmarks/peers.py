"""The engines that nmcompile is measured against, and the interleaved clock that measures all."""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

Array = npt.NDArray[np.float32]
Key = TypeVar("Key", bound=Hashable)
Engine = Callable[[Array], tuple[Array, float]]
"""Runs a model with one input and one output: the output, and the seconds that the run took."""


def timed(run: Callable[[Array], Array]) -> Engine:
    """An engine of this process, with the clock around its call."""

    def engine(x: Array) -> tuple[Array, float]:
        begin = time.perf_counter()
        output = run(x)
        return output, time.perf_counter() - begin

    return engine


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
    return timed(lambda x: np.asarray(session.run(None, {"x": x})[0]))


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
    return timed(lambda x: np.asarray(request.infer([x], share_inputs=True, share_outputs=True)[0]))


PEERS: Mapping[str, Callable[[bytes, int], Engine]] = {
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
}


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """The calling thread, and processes started inside, keep to the same `count` cores.

    Otherwise the scheduler gives a second process another core than ours, and on a shared machine
    a busy neighbour of one core then slows one engine alone, by up to a half. Engines of this
    process have to be made outside: OpenVINO keeps to the cores that it sees first.
    """
    before = os.sched_getaffinity(0)
    # The last ones: the first tend to serve interrupts.
    os.sched_setaffinity(0, sorted(before)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def interleave(
    engines: Mapping[Key, Engine],
    x: Array,
    rounds: int,
    *,
    warmup: int = 3,
    before_round: Callable[[], None] = lambda: None,
    on_round: Callable[[], None] = lambda: None,
) -> dict[Key, list[float]]:
    """Time all engines round by round, so that a slow moment of the machine hits all of them.

    Before each timed run comes an untimed one of the same engine: it refills the caches, and
    outlasts the spinning threads of the engine before.

    Returns:
        Milliseconds of every round, by engine.
    """
    times: dict[Key, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for index in range(warmup + rounds):
        before_round()
        # Every round begins with another engine.
        first = index % len(order)
        for name in order[first:] + order[:first]:
            engines[name](x)
            _, seconds = engines[name](x)
            if index >= warmup:
                times[name].append(seconds * 1e3)
        on_round()
    return times
