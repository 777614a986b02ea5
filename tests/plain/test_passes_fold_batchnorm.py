"""fold_batchnorm: the function of the model stays, the batch norm goes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nmcompile.frontends import open_model
from nmcompile.passes.fold_batchnorm import FoldBatchNorm
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import detect, project
from nmcompile.sparsity.pattern import NM
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, export_onnx, randomised, run_onnx, run_torch


def conv_norm_onnx(
    channels: tuple[int, int],
    kernel: tuple[int, int],
    attributes: Mapping[str, Any],
    *,
    bias: bool,
    size: int,
    seed: int,
) -> onnx.ModelProto:
    """Conv -> BatchNormalization -> Relu with random constants."""
    rng = np.random.default_rng(seed)
    inputs, outputs = channels
    groups = attributes.get("group", 1)
    arrays = {
        "w": rng.normal(size=(outputs, inputs // groups, *kernel)),
        "b": rng.normal(size=outputs),
        "gamma": rng.uniform(0.5, 1.5, outputs),
        "beta": rng.normal(size=outputs),
        "mean": rng.normal(size=outputs),
        "var": rng.uniform(0.5, 2, outputs),
    }
    names = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [
        helper.make_node("Conv", names, ["c"], **attributes),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in arrays.items()
        if bias or name != "b"
    ]
    graph = helper.make_graph(
        nodes,
        "conv_norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, inputs, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@given(
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strides=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    dilations=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(40)
def test_any_onnx_convolution_keeps_its_function(
    groups: int,
    widths: tuple[int, int],
    kernel: tuple[int, int],
    pads: list[int],
    strides: list[int],
    dilations: list[int],
    bias: bool,
    seed: int,
) -> None:
    attributes = {
        "group": groups,
        "pads": pads,
        "strides": strides,
        "dilations": dilations,
    }
    channels = (widths[0] * groups, widths[1] * groups)
    proto = conv_norm_onnx(channels, kernel, attributes, bias=bias, size=6, seed=seed)
    source = open_model(proto)
    assert FoldBatchNorm().call(source.graph).modified
    check_graph(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["conv", "other"]
    (layer,) = source.graph.layers()
    assert (layer.groups, list(layer.stride), list(layer.dilation)) == (groups, strides, dilations)
    assert list(layer.padding) == pads
    x = torch.randn(2, channels[0], 6, 6)
    assert_close(run_onnx(source.native(), x), run_onnx(proto, x))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [6, 7])
def test_onnx_auto_padding_is_read_as_the_runtime_does(mode: str, size: int) -> None:
    attributes = {"auto_pad": mode, "strides": [2, 2]}
    proto = conv_norm_onnx((4, 4), (4, 3), attributes, bias=True, size=size, seed=0)
    (layer,) = open_model(proto).graph.layers()
    conv = nn.Conv2d(4, 4, (4, 3), 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(layer.weight))
        assert conv.bias is not None and layer.bias is not None
        conv.bias.copy_(torch.tensor(layer.bias))
    norm = nn.Sequential(nn.BatchNorm2d(4, affine=True), nn.ReLU()).eval()
    constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in proto.graph.initializer}
    norm[0].load_state_dict(
        {
            "weight": constants["gamma"],
            "bias": constants["beta"],
            "running_mean": constants["mean"],
            "running_var": constants["var"],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    x = torch.randn(2, 4, size, size)
    top, left, bottom, right = layer.padding
    padded = nn.functional.pad(x, (left, right, top, bottom))
    assert_close(run_torch(nn.Sequential(conv, norm), padded), run_onnx(proto, x))


@given(
    st.sampled_from([(1, 1), (2, 2), (1, 4)]),
    st.sampled_from([1, 3, (1, 3)]),
    st.sampled_from([0, 1, "same"]),
    st.booleans(),
    st.booleans(),
)
@examples(6)
def test_any_torch_convolution_keeps_its_function(
    ratio: tuple[int, int],
    kernel: int | tuple[int, int],
    padding: int | str,
    bias: bool,
    affine: bool,
) -> None:
    inputs, outputs = 4 * ratio[0], 4 * ratio[1]
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=4, bias=bias)
    norm = nn.BatchNorm2d(outputs, affine=affine)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    model, x = nn.Sequential(conv, norm).eval(), torch.randn(2, inputs, 6, 6)
    source = open_model(model, example_inputs=(x,))
    FoldBatchNorm().call(source.graph)
    check_graph(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["conv"]
    assert_close(run_torch(source.native(), x), run_torch(model, x))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_linear_and_batch_norm_fold(kind: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), randomised(nn.BatchNorm1d(6)), nn.ReLU()).eval()
    x = torch.randn(3, 8)
    source = (
        open_model(model, example_inputs=(x,))
        if kind == "torch"
        else open_model(export_onnx(model, x))
    )
    FoldBatchNorm().call(source.graph)
    check_graph(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["linear", "other"]
    run = run_torch if kind == "torch" else run_onnx
    assert_close(run(source.native(), x), run_torch(model, x))


def test_the_bias_of_addmm_is_kept() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(8, 6)), nn.Parameter(torch.rand(6))
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(torch.addmm(self.bias, x, self.weight))
            return y

    model, x = randomised(Added()), torch.randn(3, 8)
    source = open_model(model, example_inputs=(x,))
    assert FoldBatchNorm().call(source.graph).modified
    assert [op.kind for op in source.graph.ops()] == ["linear"]
    assert_close(run_torch(source.native(), x), run_torch(model, x))


def test_two_batch_norms_in_a_row_fold() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    x = torch.randn(1, 3, 6, 6)
    source = open_model(model, example_inputs=(x,))
    FoldBatchNorm().call(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["conv"]
    assert_close(run_torch(source.native(), x), run_torch(model, x))


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z: torch.Tensor = self.bn(y) * y
        return z


def test_an_output_that_is_read_elsewhere_too_keeps_its_batch_norm() -> None:
    model, x = randomised(TwoReaders()), torch.randn(1, 3, 6, 6)
    source = open_model(model, example_inputs=(x,))
    result = FoldBatchNorm().call(source.graph)
    assert not result.modified
    (note,) = result.notes
    assert note.layer == "bn" and note.left
    assert "the output of conv has 2 readers" in note.text
    assert_close(run_torch(source.native(), x), run_torch(model, x))


def test_a_batch_norm_before_the_convolution_stays() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    source = open_model(model, example_inputs=(torch.randn(1, 3, 6, 6),))
    result = FoldBatchNorm().call(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["batch_norm", "conv"]
    assert "does not follow a convolution" in result.notes[0].text


def test_shared_weights_are_not_scaled_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.two(self.conv(self.one(self.conv(x)).relu()))
            return y

    model, x = randomised(Shared()), torch.randn(1, 4, 5, 5)
    source = open_model(model, example_inputs=(x,))
    FoldBatchNorm().call(source.graph)
    check_graph(source.graph)
    assert [op.kind for op in source.graph.ops()] == ["conv", "other", "conv"]
    assert_close(run_torch(source.native(), x), run_torch(model, x))


def test_the_pattern_of_the_weight_survives() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)))
    with torch.no_grad():
        weight = model[0].weight
        assert isinstance(weight, torch.Tensor)
        weight.copy_(torch.tensor(project(weight.numpy(), NM(2, 4))))
    source = open_model(model, example_inputs=(torch.randn(1, 16, 6, 6),))
    FoldBatchNorm().call(source.graph)
    assert detect(source.graph.layers()[0].weight).pattern == NM(2, 4)
