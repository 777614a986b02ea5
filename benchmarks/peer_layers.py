"""Single dense convolutions in other engines, timed as ours are: weights out of cache.

By the engines' own profiles, and only the convolution: in a network its input has the layout that
they want, alone it is brought into it first.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nmcompile.bench.engines import find_engine, is_installed
from nmcompile.kernels.problem import Problem
from nmcompile.machine.trial import BUDGET, FLUSH_BYTES, ROUNDS

Array = npt.NDArray[Any]
ENGINES: Mapping[str, tuple[str, ...]] = {
    "float32": ("onnxruntime", "openvino-f32"),
    "int8": ("onnxruntime-int8", "openvino-int8"),
}


def layer_model(problem: Problem) -> onnx.ModelProto:
    """A convolution with ReLU as ONNX, quantised (Q/DQ, u8 in and out) where the problem is."""
    conv, weight, integers = problem.conv, problem.weight, problem.integers
    assert weight is not None
    arrays: dict[str, Array] = {"w": weight}
    nodes = []
    if integers is None:
        assert problem.bias is not None
        kind, source, names = TensorProto.FLOAT, "x", ["w", "b"]
        arrays["b"] = problem.bias
    else:
        kind, source, names = TensorProto.UINT8, "real_x", ["real_w", "real_b"]
        offset = integers.offset
        assert offset is not None and integers.zero == integers.low == 0
        # A step of input and output is 1, so that the weights' scale is the problem's.
        arrays |= {"b": offset, "scale": integers.scale, "one": np.array(1, np.float32)}
        arrays |= {"zero": np.array(0, np.uint8), "x_zero": np.array(integers.x_zero, np.uint8)}
        dequantise = "DequantizeLinear"
        nodes = [
            helper.make_node(dequantise, ["x", "one", "x_zero"], ["real_x"]),
            helper.make_node(dequantise, ["w", "scale"], ["real_w"], axis=0),
            helper.make_node(dequantise, ["b", "scale"], ["real_b"], axis=0),
        ]
    nodes.append(
        helper.make_node(
            *("Conv", [source, *names], ["c"]),
            pads=conv.padding,
            strides=conv.stride,
            dilations=conv.dilation,
            group=conv.groups,
        )
    )
    nodes.append(helper.make_node("Relu", ["c"], ["y" if integers is None else "r"]))
    if integers is not None:
        nodes.append(helper.make_node("QuantizeLinear", ["r", "one", "zero"], ["y"]))
    x = (conv.batch, conv.in_channels, conv.in_height, conv.in_width)
    y = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, y)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def time_peers(problem: Problem, threads: int) -> dict[str, float]:
    """Median milliseconds of the convolution in every engine that is installed.

    A quantised one that OpenVINO runs in float by its own choice, as it does 1x1 with a stride, is
    timed so, and a line on stderr says it.

    Raises:
        RuntimeError: onnxruntime runs a quantised one in float.
    """
    model = layer_model(problem)
    found = {}
    for name in ENGINES[problem.dtype]:
        if is_installed(find_engine(name)):
            loader = _onnxruntime if name.startswith("onnxruntime") else _openvino
            with loader(model, threads, problem.dtype == "int8") as timed:
                found[name] = timed()
    return found


def _repeat(run: Callable[[], None]) -> int:
    """Call as often as kernels are timed, weights out of cache; returns how often."""
    flush = np.zeros(FLUSH_BYTES // 4, np.float32)
    rounds, begin = 0, time.perf_counter()
    while rounds <= ROUNDS[0] or (rounds <= ROUNDS[1] and time.perf_counter() - begin < BUDGET):
        flush.sum()
        run()
        rounds += 1
    return rounds


def _input(model: onnx.ModelProto) -> Array:
    kind = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    random = np.random.default_rng(0)
    if kind.elem_type == TensorProto.UINT8:
        return random.integers(0, 256, shape).astype(np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


@contextmanager
def _onnxruntime(
    model: onnx.ModelProto, threads: int, integers: bool
) -> Iterator[Callable[[], float]]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"x": _input(model)}

        def timed() -> float:
            _repeat(lambda: session.run(None, feeds))
            events = json.loads(Path(session.end_profiling()).read_text())
            kernels = [
                event
                for event in events
                if event.get("cat") == "Node"
                and event["name"].endswith("_kernel_time")
                and "Conv" in event["args"]["op_name"]
            ]
            names = {event["args"]["op_name"] for event in kernels}
            if integers and not all(name.startswith("QLinear") for name in names):
                raise RuntimeError(f"onnxruntime runs a quantised convolution as {names}")
            return float(statistics.median(event["dur"] for event in kernels[1:])) * 1e-3

        yield timed


@contextmanager
def _openvino(
    model: onnx.ModelProto, threads: int, integers: bool
) -> Iterator[Callable[[], float]]:
    import openvino

    core: Any = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
    }
    if not integers:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        onnx.save(model, path)
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request, x = compiled.create_infer_request(), _input(model)
    taken, kinds = list[float](), set[str]()

    def run() -> None:
        request.infer({0: x}, share_inputs=True, share_outputs=True)
        (node,) = (n for n in request.get_profiling_info() if n.node_type == "Convolution")
        kinds.add(node.exec_type)
        taken.append(node.real_time.total_seconds() * 1e3)

    def timed() -> float:
        _repeat(run)
        if integers and not all(kind.upper().endswith("I8") for kind in kinds):
            chosen = ", ".join(sorted(kinds))
            print(f"OpenVINO runs a quantised convolution as {chosen}", file=sys.stderr)
        return statistics.median(taken[1:])

    yield timed
