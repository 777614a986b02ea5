"""Resizing in models of torch and ONNX: which forms a kernel takes, and all of them right."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.functional import interpolate

import nmcompile as nmc
from nmcompile import runtime
from tests.support.peer import peer

Resize = Callable[[Tensor], Tensor]

FOUND: dict[str, Resize] = {
    "nearest": lambda x: interpolate(x, scale_factor=2),
    "nearest, one axis": lambda x: interpolate(x, scale_factor=(1, 3)),
    "nearest, any size": lambda x: interpolate(x, size=(17, 23)),
    "nearest-exact": lambda x: interpolate(x, scale_factor=1.7, mode="nearest-exact"),
    "bilinear": lambda x: interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda x: interpolate(
        x, size=(9, 37), mode="bilinear", align_corners=True
    ),
    "bicubic": lambda x: interpolate(x, scale_factor=3, mode="bicubic"),
    "of rows": lambda x: interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    "with its like": lambda x: torch.relu(interpolate(x, scale_factor=2)) + 1,
}
LEFT: dict[str, Resize] = {
    "to less": lambda x: interpolate(x, size=(4, 5), mode="bilinear"),
    "by a little": lambda x: interpolate(x.repeat(1, 1, 1, 3), size=(8, 37), mode="bilinear"),
    "gathered": lambda x: x[:, :, [2, 0, 1]],
}


class Resizes(nn.Module):
    """All of them, of an image that a convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return tuple(resize(y) for resize in (FOUND | LEFT).values())


def test_resizing_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Resizes().eval(), torch.randn(2, 3, 8, 12)
    nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=(x,))
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        feeds = {session.inputs[0].name: x.numpy()}
        results = list(session.run(feeds).values())
        symbols = Counter(c.symbol.partition("__")[0] for c in session.profile(feeds))
    assert symbols["resample_f32"] == len(FOUND)
    expected = model.double()(x.double())
    for name, found, wanted in zip(FOUND | LEFT, results, expected, strict=True):
        np.testing.assert_allclose(
            found, wanted.detach().numpy(), rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_resizing_in_onnx(tmp_path: Path) -> None:
    """With the sizes, and with their ratios; all but the last are computed by a kernel."""
    forms: list[dict[str, str]] = [
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "nearest"},
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    ]
    shape, wanted = (1, 3, 7, 18), (1, 3, 14, 54)
    constants: dict[str, npt.NDArray[Any]] = {
        "sizes": np.array(wanted, np.int64),
        "scales": np.array([1, 1, 2, 3], np.float32),
        "less": np.array([1, 1, 0.5, 0.5], np.float32),
    }
    nodes = [
        helper.make_node(
            "Resize", ["x", "", "", "sizes"] if place % 2 else ["x", "", "scales"],
            [f"y{place}"], **form,
        )
        for place, form in enumerate(forms)
    ]  # fmt: skip
    nodes.append(helper.make_node("Resize", ["x", "", "less"], ["small"], mode="linear"))
    outputs = [
        helper.make_tensor_value_info(
            node.output[0], TensorProto.FLOAT, wanted if "y" in node.output[0] else (1, 3, 3, 9)
        )
        for node in nodes
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    nmc.compile(model, output=tmp_path / "m.nmc")
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        results = session.run({"x": x})
        symbols = Counter(c.symbol.partition("__")[0] for c in session.profile({"x": x}))
    assert symbols["resample_f32"] == len(forms)
    expected = peer(model).run(None, {"x": x})
    for found, reference in zip(results.values(), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-5)
