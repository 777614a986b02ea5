"""Poolings along one axis and three, and adaptive ones, run on the kernels that pool images."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from tests.support.examples import examples
from tests.support.peer import by_peer

Pooling = tuple[str, tuple[Any, ...]]

SHAPES = {1: (2, 3, 19), 2: (2, 3, 9, 12), 3: (1, 3, 7, 9, 10)}


def special(shape: Sequence[int]) -> Tensor:
    """Real numbers, and a few that are none."""
    random = np.random.default_rng(len(shape))
    x = random.standard_normal(shape, dtype=np.float32)
    rare = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)
    places = random.random(shape) < 0.02
    x[places] = random.choice(rare, places.sum())
    return torch.from_numpy(x)


@st.composite
def poolings(draw: st.DrawFn) -> Pooling:
    """A function of torch's and its arguments."""
    kind = draw(st.sampled_from(["max", "avg", "adaptive_max", "adaptive_avg"]))
    axes = draw(st.sampled_from([1, 2, 3, 3] if "adaptive" in kind else [1, 3, 3]))
    each = st.tuples(*[st.integers(1, 4)] * axes)
    name = f"{kind}_pool{axes}d"
    if "adaptive" in kind:
        return name, (draw(st.tuples(*[st.integers(1, 10)] * axes)),)
    kernel, stride = draw(each), draw(each)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    ceil = draw(st.booleans())
    if kind == "avg":
        return name, (kernel, stride, padding, ceil, draw(st.booleans()))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * axes))
    return name, (kernel, stride, padding, dilation, ceil)


class Pools(nn.Module):
    def __init__(self, chosen: Sequence[Pooling]) -> None:
        super().__init__()
        self.chosen = [(getattr(functional, name), args) for name, args in chosen]
        self.axes = [int(name[-2]) for name, _ in chosen]

    def forward(self, *images: Tensor) -> list[Tensor]:
        return [
            call(images[axes - 1], *args)
            for axes, (call, args) in zip(self.axes, self.chosen, strict=True)
        ]


@examples(2)
@given(chosen=st.lists(poolings(), min_size=4, max_size=4))
def test_they_agree_with_torch(chosen: list[Pooling]) -> None:
    model, images = Pools(chosen).eval(), tuple(special(shape) for shape in SHAPES.values())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.nmc"
        result = nmcompile.compile(model, output=path, example_inputs=images, rest="none")
        session = nmcompile.runtime.load(path, threads=1)
    given = {spec.name: x.numpy() for spec, x in zip(session.inputs, images, strict=False)}
    found = list(session.run(given).values())
    for (name, args), ours, theirs in zip(chosen, found, model(*images), strict=True):
        text = f"{name}{args}"
        if "max" in name:
            np.testing.assert_array_equal(ours, theirs.numpy(), err_msg=text)
        else:
            np.testing.assert_allclose(ours, theirs.numpy(), 1e-5, 1e-6, err_msg=text)
    assert not any("pool" in name for name in result.report.other_operators or ())


ONNX: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [3, 2, 3], "strides": [2, 1, 3], "pads": [1, 0, 1, 0, 1, 2],
                "dilations": [1, 2, 1], "ceil_mode": 1},
    "AveragePool": {"kernel_shape": [2, 3, 3], "strides": [1, 2, 2], "pads": [1, 1, 0, 0, 1, 2]},
    "LpPool": {"kernel_shape": [2, 2, 3], "strides": [2, 1, 2], "p": 2},
    "GlobalAveragePool": {},
    "GlobalMaxPool": {},
}  # fmt: skip
AS_WELL: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "auto_pad": "SAME_LOWER"},
    "AveragePool": {"kernel_shape": [7, 2, 2], "pads": [0, 1, 1, 0, 1, 0], "count_include_pad": 1},
}


def test_those_of_onnx_agree_with_onnxruntime(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(name, ["x"], [f"{name}{index}"], **attributes)
        for index, table in enumerate((ONNX, AS_WELL))
        for name, attributes in table.items()
    ]
    outputs = [
        helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes
    ]
    given_as = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES[3])
    graph = helper.make_graph(nodes, "g", [given_as], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    result = nmcompile.compile(proto, output=tmp_path / "m.nmc")
    x = np.random.default_rng(0).standard_normal(SHAPES[3], dtype=np.float32)
    found = nmcompile.runtime.load(tmp_path / "m.nmc", threads=1).run(x)
    for node, theirs in zip(nodes, by_peer(proto, {"x": x}), strict=True):
        ours, text = found[node.output[0]], str(node)
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6, err_msg=text)
    left = set(result.report.other_operators or ())
    assert not {name for name in left if "pool" in name or name in ("max", "mean")}
