"""ONNX models of which onnxruntime has to run a part, with convolutions on our side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import nmcompile
from tests.support.peer import peer

Array = npt.NDArray[Any]
Spec = tuple[str, int, Sequence[int | str] | None]

FLOAT = TensorProto.FLOAT
SHAPE = (1, 8, 16, 16)
X: Spec = ("x", FLOAT, SHAPE)
node = helper.make_node


def weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    scaled: Array = values / np.sqrt(np.prod(shape[1:]))
    return scaled.astype(np.float32)


def image(seed: int = 1, shape: Sequence[int] = SHAPE) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any],
    outputs: Sequence[Spec],
    inputs: Sequence[Spec] = (X,),
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def conv(data: str, result: str, weight_name: str = "w", **attributes: Any) -> onnx.NodeProto:
    return node("Conv", [data, weight_name], [result], name=f"conv_{result}", **attributes)


def backbone(result: str = "a") -> list[onnx.NodeProto]:
    """x (1, 8, 16, 16) -> convolution, ReLU -> (1, 16, 16, 16), with the weight of `BACKBONE`."""
    return [
        node("Conv", ["x", "w"], ["c"], name="conv1", pads=[1] * 4),
        node("Relu", ["c"], [result]),
    ]


BACKBONE = {"w": weight(16, 8, 3, 3)}


def counting() -> onnx.ModelProto:
    """The backbone, and the places where it is above a threshold: of open length."""
    nodes = [*backbone(), node("Greater", ["a", "t"], ["g"]), node("NonZero", ["g"], ["places"])]
    weights = {**BACKBONE, "t": np.float32(0.5)}
    return model(nodes, weights, [("a", FLOAT, None), ("places", TensorProto.INT64, None)])


def reader() -> onnx.ModelProto:
    """A recogniser: convolutions, an LSTM that is not ours over the columns, a classifier."""
    nodes = [
        *backbone(),
        node("ReduceMean", ["a"], ["m"], axes=[2], keepdims=0),
        node("Transpose", ["m"], ["t"], perm=[2, 0, 1]),
        node(
            "LSTM", ["t", "lw", "lr", "lb"], ["y"], hidden_size=32, direction="bidirectional",
            clip=50.0,
        ),
        node("Transpose", ["y"], ["y1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["y1", "flat"], ["y2"]),
        node("MatMul", ["y2", "fc.weight"], ["f"]),
        node("Softmax", ["f"], ["text"], axis=-1),
    ]  # fmt: skip
    weights = {
        **BACKBONE,
        "lw": weight(2, 128, 16),
        "lr": weight(2, 128, 32),
        "lb": weight(2, 256),
        "flat": np.array([16, 1, 64]),
        "fc.weight": weight(64, 400),
    }
    return model(nodes, weights, [("text", FLOAT, None)])


def by_onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    return list(peer(proto).run(None, dict(feeds)))


def check(
    proto: onnx.ModelProto, folder: Path, feeds: Mapping[str, Array] | None = None, **options: Any
) -> nmcompile.CompileResult:
    """Compile and run a model; what comes out is what onnxruntime gives for all of it."""
    given = {"x": image()} if feeds is None else feeds
    result = nmcompile.compile(proto, output=folder / "m.nmc", **options)
    with nmcompile.runtime.load(folder / "m.nmc", threads=1) as session:
        found = session.run(given)
    wanted = by_onnxruntime(proto, given)
    assert list(found) == [value.name for value in proto.graph.output]
    for name, expected in zip(found, wanted, strict=True):
        assert found[name].dtype == expected.dtype, name
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    return result


def runs(result: nmcompile.CompileResult) -> list[str]:
    """Who runs the segments."""
    return [segment.runs for segment in result.report.segments]
