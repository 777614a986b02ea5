"""Indices that a model computes: right within their axis, marked outside of it, never a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from nmcompile import compile, runtime
from nmcompile.errors import UnsupportedOperatorError
from tests.support.peer import peer

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 5)).astype(np.float32)
FAR = 2**32
"""As int32 this is 0."""
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

# Operator, attributes, data, indices, what is added to them, updates.
CASES: dict[str, tuple[str, dict[str, Any], Array, Array, Any, Array | None]] = {
    "gather": ("Gather", {"axis": 1}, X, np.array([0, -1, 3]), [0, FAR, 0], None),
    "elements": ("GatherElements", {"axis": 1}, X, RNG.integers(-4, 4, (3, 2, 5)), 10**9, None),
    "whole": (
        "GatherElements", {"axis": 0}, np.arange(12).reshape(3, 4), np.array([[0, 1, 2, -1]]),
        10**9, None,
    ),
    "points": ("GatherND", {}, X, np.array([[0, 1], [2, 3], [-1, -4]]), [[FAR, 0]], None),
    "batches": (
        "GatherND", {"batch_dims": 1}, X, np.array([[[0]], [[3]], [[2]]]), -(10**9), None,
    ),
    "scattered": (
        "ScatterElements", {"axis": 1}, X,
        np.stack([np.zeros((3, 5), int), np.full((3, 5), -1)], 1), 10**9,
        RNG.standard_normal((3, 2, 5)).astype(np.float32),
    ),
    "placed": (
        "ScatterND", {}, X, np.array([[0, 1], [2, 3], [-1, -4]]), [[0, -(10**9)]],
        RNG.standard_normal((3, 5)).astype(np.float32),
    ),
}  # fmt: skip


def one_node(
    operator: str, attributes: dict[str, Any], arrays: list[Array], fixed: bool = False
) -> Any:
    """A model of one operator; with `fixed`, its indices are a constant."""
    value = helper.make_tensor_value_info
    names = ["x", "i", "u"][: len(arrays)]
    inputs = [
        value(name, TYPES[str(array.dtype)], array.shape)
        for name, array in zip(names, arrays, strict=True)
        if not (fixed and name == "i")
    ]
    constants = [numpy_helper.from_array(arrays[1], "i")] if fixed else []
    output = value("y", TYPES[str(arrays[0].dtype)], None)
    node = helper.make_node(operator, names, ["y"], **attributes)
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def runner(model: onnx.ModelProto, path: Path) -> Callable[..., Array]:
    compile(model, output=path)
    session = runtime.load(path, threads=1)

    def run(*arrays: Array) -> Array:
        names = ["x", "i", "u"][: len(arrays)]
        (found,) = session.run(dict(zip(names, arrays, strict=True))).values()
        return np.asarray(found)

    return run


@pytest.mark.parametrize("name", CASES)
def test_computed_indices(name: str, tmp_path: Path) -> None:
    operator, attributes, data, indices, shift, updates = CASES[name]
    arrays = [data, indices] if updates is None else [data, indices, updates]
    model = one_node(operator, attributes, arrays)
    run = runner(model, tmp_path / "m.nmc")
    reference = peer(model)
    (wanted,) = reference.run(None, dict(zip("xiu", arrays, strict=False)))
    np.testing.assert_allclose(run(*arrays), wanted, rtol=1e-6)
    moved = indices + np.array(shift)
    found = run(data, moved, *arrays[2:])
    if data.dtype != np.float32:  # the nearest
        assert np.array_equal(found[0], data[-1])
    elif updates is not None:  # anything may have been meant
        assert np.isnan(found).all()
    else:
        assert np.isnan(found).any()
        kept = ~np.isnan(found)
        assert np.array_equal(found[kept], wanted[kept])


@pytest.mark.parametrize("name", ["elements", "points", "placed"])
def test_constant_indices_outside_of_their_axis_are_refused(name: str, tmp_path: Path) -> None:
    operator, attributes, data, indices, shift, updates = CASES[name]
    arrays = [data, indices + np.array(shift)] + ([] if updates is None else [updates])
    model = one_node(operator, attributes, arrays, fixed=True)
    with pytest.raises(UnsupportedOperatorError, match=f"{operator}.*expected indices.*found"):
        compile(model, output=tmp_path / "m.nmc")


def test_regions_of_an_image_that_is_not_there(tmp_path: Path) -> None:
    images = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    regions = np.array([[0, 0, 3, 3], [1, 1, 4, 4]], np.float32)
    sizes = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    model = one_node("RoiAlign", sizes, [images, regions, np.array([0, 1])])
    compile(model, output=tmp_path / "m.nmc")
    session = runtime.load(tmp_path / "m.nmc", threads=1)
    reference = peer(model)
    given = {"x": images, "i": regions, "u": np.array([0, 1])}
    (wanted,) = reference.run(None, given)
    np.testing.assert_allclose(session.run(given)["y"], wanted, rtol=1e-5, atol=1e-6)
    found = session.run(given | {"u": np.array([0, 10**6])})["y"]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[1]).all()


class Lookups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(20.0).reshape(5, 4))

    def forward(self, i: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "embedding": functional.embedding(i, self.table),
            "select": torch.index_select(self.table, 0, i),
            "index": self.table[i],
            "gather": torch.gather(self.table, 1, i[None]),
        }


def test_torch_indices_beyond_int32_do_not_wrap(tmp_path: Path) -> None:
    model, i = Lookups().eval(), torch.tensor([0, 3, 2, 1])
    compile(model, output=tmp_path / "m.nmc", example_inputs=i)
    session = runtime.load(tmp_path / "m.nmc", threads=1)
    for name, wanted in model(i).items():
        assert np.array_equal(session.run(i.numpy())[name], wanted.detach().numpy()), name
    for name, found in session.run(i.numpy() + FAR * np.array([1, -1, 2, 0])).items():
        outside = found[0, :3] if name == "gather" else found[:3]
        assert np.isnan(outside).all(), name


class Pairs(nn.Module):
    def forward(self, x: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return x[:, i, j]


def test_indices_along_two_axes_that_are_outside_of_one(tmp_path: Path) -> None:
    """They must not come to the next row."""
    x, i, j = torch.randn(2, 5, 4), torch.tensor([0, -1, 2]), torch.tensor([3, 1, -4])
    compile(Pairs(), output=tmp_path / "m.nmc", example_inputs=(x, i, j))
    session = runtime.load(tmp_path / "m.nmc", threads=1)

    def run(i: torch.Tensor, j: torch.Tensor) -> Array:
        (found,) = session.run({"x": x, "i": i, "j": j}).values()
        return np.asarray(found)

    assert np.array_equal(run(i, j), Pairs()(x, i, j).numpy())
    found = run(i, torch.tensor([4, 1, -5]))
    assert np.isnan(found[:, [0, 2]]).all() and np.array_equal(found[:, 1], x[:, -1, 1].numpy())
    assert np.isnan(run(torch.tensor([5, -6, 2]), j)[:, :2]).all()
