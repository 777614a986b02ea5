"""fold_parallel_branches: sums of convolutions become one, and no pattern is lost in silence."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from nmcompile.errors import PatternError
from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.fold_batchnorm import FoldBatchNorm
from nmcompile.passes.fold_parallel_branches import FoldParallelBranches
from nmcompile.passes.graphs.interface import Layer
from nmcompile.passes.materialize_weights import MaterializeWeights
from nmcompile.passes.pipeline import FOLD_PIPELINE, check_graph, run_pipeline
from nmcompile.sparsity import NM, OneByN, check, detect, project
from tests.support.examples import examples
from tests.support.seed_modules import (
    Array,
    RepVggBlock,
    SpReBasicBlock,
    SpReConv,
    assert_close,
    export_onnx,
    randomised,
    run_onnx,
    run_torch,
)

KINDS = ["torch", "onnx-legacy", "onnx-dynamo"]


def opened(model: nn.Module, x: torch.Tensor, kind: str) -> SourceModel:
    if kind == "torch":
        return open_model(model, example_inputs=(x,))
    return open_model(export_onnx(model, x, dynamo=kind == "onnx-dynamo"))


def output(source: SourceModel, x: torch.Tensor) -> Array:
    return (run_torch if source.kind == "torch" else run_onnx)(source.native(), x)


def kinds_of(source: SourceModel) -> list[str]:
    return [op.kind for op in source.graph.ops()]


@pytest.mark.parametrize(
    ("kind", "stride"), [(KINDS[0], 1), (KINDS[0], 2), (KINDS[1], 2), (KINDS[2], 1)]
)
def test_a_spre_block_folds_to_plain_convolutions(kind: str, stride: int) -> None:
    torch.manual_seed(0)
    model, x = randomised(SpReBasicBlock(16, 16, stride)), torch.randn(2, 16, 8, 8)
    source = opened(model, x, kind)
    result = run_pipeline(source.graph, verify=True)
    assert kinds_of(source).count("conv") == (2 if stride == 1 else 3)
    assert "batch_norm" not in kinds_of(source)
    for layer in source.graph.layers():
        assert check(layer.weight, NM(2, 4)).ok
    proven = [note for note in result.notes if "2:4 proven" in note.text]
    assert [note.layer for note in proven] == ["first.conv", "second.conv"]
    assert_close(output(source, x), run_torch(model, x))


def spre_reference(block: SpReConv) -> tuple[Array, Array]:
    """The formula of the paper: W = w1' g1/s1 + (w2 * (w1' != 0) * S) g2/s2, in float64."""

    def scale_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        return scale, norm.bias.double() - norm.running_mean.double() * scale

    with torch.no_grad():
        main = block.conv.masked_weight().double()
        mask = block.conv_rep.mask
        assert isinstance(mask, torch.Tensor)
        second = block.conv_rep.weight.double() * (main != 0) * mask
        scale1, shift1 = scale_shift(block.bn)
        scale2, shift2 = scale_shift(block.bn_rep)
        weight = main * scale1[:, None, None, None] + second * scale2[:, None, None, None]
        return weight.numpy(), (shift1 + shift2).numpy()


def test_both_graph_kinds_fold_spre_to_the_convolution_of_the_paper() -> None:
    torch.manual_seed(1)
    model, x = randomised(SpReConv(16, 32, 2)), torch.randn(1, 16, 9, 9)
    weight, bias = spre_reference(model)
    found: list[Layer] = []
    for kind in KINDS:
        source = opened(model, x, kind)
        run_pipeline(source.graph)
        found += source.graph.layers()
    assert len(found) == len(KINDS)
    for layer in found:
        assert layer.bias is not None
        assert_close(layer.weight, weight)
        assert_close(layer.bias, bias)
        assert detect(layer.weight).pattern == NM(2, 4)
        assert (layer.stride, layer.padding) == ((2, 2), (1, 1, 1, 1))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_branch_that_leaves_the_pattern_is_not_folded(kind: str) -> None:
    torch.manual_seed(2)
    model, x = randomised(SpReConv(16, 16, outside=True)), torch.randn(1, 16, 6, 6)
    source = opened(model, x, kind)
    result = run_pipeline(source.graph, verify=True)
    assert kinds_of(source) == ["conv", "conv", "add"]
    (note,) = (note for note in result.notes if note.left)
    main, second = (layer.weight for layer in source.graph.layers())
    breach = check(main + second, NM(2, 4))
    assert breach.violations > 0
    assert f"break 2:4 in {breach.violations} groups" in note.text
    assert f"the first at weight index {breach.first}" in note.text
    assert note.layer == "conv"
    assert_close(output(source, x), run_torch(model, x))


class TwoWeights(SpReConv):
    """The convolutions of both branches in one module, which returns a tuple."""

    def forward(self, x: torch.Tensor) -> Any:
        main, mask, conv = self.conv.masked_weight(), self.conv_rep.mask, self.conv
        assert isinstance(mask, torch.Tensor)
        second = self.conv_rep.weight * mask * torch.abs(torch.sign(main))
        return (
            nn.functional.conv2d(x, main, None, conv.stride, conv.padding),
            nn.functional.conv2d(x, second, None, conv.stride, conv.padding),
        )


class TupleBlock(nn.Module):
    """Normalises and adds what such a module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.both = TwoWeights(16, 32, 2)
        self.bn, self.bn_rep = nn.BatchNorm2d(32), nn.BatchNorm2d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, z = self.both(x)
        total: torch.Tensor = self.bn(y) + self.bn_rep(z)
        return total


@pytest.mark.parametrize("kind", KINDS)
def test_branches_that_come_in_a_tuple_fold_too(kind: str) -> None:
    torch.manual_seed(4)
    model, x = randomised(TupleBlock()), torch.randn(1, 16, 9, 9)
    source = opened(model, x, kind)
    result = run_pipeline(source.graph, verify=True)
    assert kinds_of(source) == ["conv"]
    assert detect(source.graph.layers()[0].weight).pattern == NM(2, 4)
    assert any("2:4 proven" in note.text for note in result.notes)
    assert_close(output(source, x), run_torch(model, x))


def test_strict_raises_where_a_pattern_would_break() -> None:
    model = randomised(SpReConv(16, 16, outside=True))
    source = open_model(model, example_inputs=(torch.randn(1, 16, 6, 6),))
    with pytest.raises(PatternError, match=r"layer conv not folded with conv_rep.*break 2:4"):
        run_pipeline(source.graph, (*FOLD_PIPELINE[:2], FoldParallelBranches(strict=True)))


class Summed(nn.Module):
    """Branches of one input, added from left to right; None is the input itself."""

    def __init__(self, *branches: nn.Module | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList([b or nn.Identity() for b in branches])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.branches[0](x)
        for branch in list(self.branches)[1:]:
            total = total + branch(x)
        return total


def masked(conv: nn.Conv2d, weight: Array) -> nn.Conv2d:
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weight))
    return conv


def test_the_pattern_of_the_smaller_support_is_kept_too() -> None:
    sparse, dense = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
    masked(sparse, project(sparse.weight.detach().numpy(), NM(1, 4)))
    for branches in ((sparse, dense), (dense, sparse)):
        source = open_model(Summed(*branches), example_inputs=(torch.randn(1, 16, 6, 6),))
        (note,) = FoldParallelBranches().call(source.graph).notes
        assert "would break 1:4" in note.text


def test_blocks_that_a_branch_brings_back_break_1xn() -> None:
    main, second = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3)
    kept = project(main.weight.detach().numpy(), OneByN(8), density=0.5)
    masked(main, kept)
    source = open_model(Summed(second, main), example_inputs=(torch.randn(1, 8, 6, 6),))
    (note,) = FoldParallelBranches().call(source.graph).notes
    # Eight blocks were dropped; a dense sum keeps them all, and so passes `check`.
    first = int(np.flatnonzero(~(kept[:8] != 0).any(axis=(0, 2, 3)))[0])
    assert f"break 1x8 in 8 groups, the first at weight index {(0, first, 0, 0)}" in note.text


def test_a_small_kernel_outside_the_pattern_of_the_large_one_is_not_folded() -> None:
    large, small = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
    masked(large, project(large.weight.detach().numpy(), NM(2, 4)))
    source = open_model(Summed(large, small), example_inputs=(torch.randn(1, 16, 6, 6),))
    result = FoldParallelBranches().call(source.graph)
    assert not result.modified
    assert "would break 2:4 in" in result.notes[0].text


def test_a_sparse_small_kernel_folds_into_a_dense_large_one() -> None:
    large, small = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
    masked(small, project(small.weight.detach().numpy(), NM(2, 4)))
    model, x = Summed(small, large), torch.randn(1, 16, 6, 6)
    source = open_model(model, example_inputs=(x,))
    FoldParallelBranches().call(source.graph)
    assert kinds_of(source) == ["conv"]
    assert_close(output(source, x), run_torch(model, x))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize(("outputs", "stride", "groups"), [(8, 1, 1), (8, 1, 4), (16, 2, 2)])
def test_a_repvgg_block_becomes_one_convolution(
    kind: str, outputs: int, stride: int, groups: int
) -> None:
    model, x = randomised(RepVggBlock(8, outputs, stride, groups)), torch.randn(2, 8, 7, 7)
    source = opened(model, x, kind)
    run_pipeline(source.graph, verify=True)
    assert kinds_of(source) == ["conv"]
    assert_close(output(source, x), run_torch(model, x))


def test_the_bare_input_is_an_identity_branch() -> None:
    model, x = Summed(nn.Conv2d(6, 6, 3, padding=1, groups=2), None), torch.randn(1, 6, 5, 5)
    source = open_model(model, example_inputs=(x,))
    MaterializeWeights().call(source.graph)
    FoldParallelBranches().call(source.graph)
    assert kinds_of(source) == ["conv"]
    assert_close(output(source, x), run_torch(model, x))


class Reassociated(nn.Module):
    """(a(x) + y) + b(x): the branches meet across the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (self.a(x) + x.relu()) + self.b(x)
        return y


def test_branches_meet_across_other_operands() -> None:
    model, x = Reassociated(), torch.randn(1, 4, 6, 6)
    source = open_model(model, example_inputs=(x,))
    FoldParallelBranches().call(source.graph)
    check_graph(source.graph)
    assert sorted(kinds_of(source)) == ["add", "conv", "other"]
    assert_close(output(source, x), run_torch(model, x))


class Watched(nn.Module):
    """One branch is an output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.a(x)
        return y + self.b(x), y


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    source = open_model(Watched(), example_inputs=(torch.randn(1, 4, 6, 6),))
    assert not FoldParallelBranches().call(source.graph).modified
    assert kinds_of(source).count("conv") == 2


def test_different_inputs_are_not_parallel() -> None:
    class Sequenced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.a(x) + self.b(x.relu())
            return y

    source = open_model(Sequenced(), example_inputs=(torch.randn(1, 4, 6, 6),))
    result = FoldParallelBranches().call(source.graph)
    assert not result.modified and not result.notes


def branches_onnx(
    size: tuple[int, int],
    channels: int,
    branches: Sequence[Mapping[str, Any]],
    seed: int,
) -> ModelProto:
    """Sum of convolutions of x, one per entry (kernel, pads, strides, dilations)."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], []
    for i, attributes in enumerate(branches):
        shape = (channels, channels, *attributes["kernel_shape"])
        constants += [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"w{i}"),
            numpy_helper.from_array(rng.normal(size=channels).astype(np.float32), f"b{i}"),
        ]
        nodes.append(helper.make_node("Conv", ["x", f"w{i}", f"b{i}"], [f"c{i}"], **attributes))
    nodes.append(helper.make_node("Sum", [f"c{i}" for i in range(len(branches))], ["y"]))
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *size]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "branches", info[:1], info[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    data=st.data(),
)
@examples(40)
def test_any_kernel_inside_another_folds(
    kernel: tuple[int, int],
    pads: tuple[int, int, int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    data: st.DataObject,
) -> None:
    """Cut a smaller kernel out of the taps of the larger; its padding follows."""
    inner, inner_pads = [], list(pads)
    for axis in (0, 1):
        size = data.draw(st.integers(1, kernel[axis]))
        offset = data.draw(st.integers(0, kernel[axis] - size))
        inner.append(size)
        inner_pads[axis] -= offset * dilations[axis]
        inner_pads[axis + 2] -= (kernel[axis] - size - offset) * dilations[axis]
    assume(min(inner_pads) >= 0)
    common = {"strides": list(strides), "dilations": list(dilations)}
    branches = [
        {"kernel_shape": inner, "pads": inner_pads, **common},
        {"kernel_shape": list(kernel), "pads": list(pads), **common},
    ]
    proto = branches_onnx((9, 10), 2, branches, seed=0)
    source = open_model(proto)
    assert FoldParallelBranches().call(source.graph).modified
    check_graph(source.graph)
    assert kinds_of(source) == ["conv"]
    x = torch.randn(1, 2, 9, 10)
    assert_close(output(source, x), run_onnx(proto, x))


def addable() -> list[list[tuple[int, int, int, int]]]:
    """Kernel, padding, stride and dilation, grouped by output size for 8 x 8 images."""
    groups: dict[int, list[tuple[int, int, int, int]]] = {}
    for k, p, s, d in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2)):
        groups.setdefault((8 + 2 * p - d * (k - 1) - 1) // s, []).append((k, p, s, d))
    return [group for group in groups.values() if len(group) > 1]


@given(
    st.sampled_from(addable()).flatmap(
        lambda g: st.lists(st.sampled_from(g), min_size=2, max_size=3)
    )
)
@examples(50)
def test_whatever_is_folded_keeps_its_function(specs: list[tuple[int, int, int, int]]) -> None:
    """Many of these pairs must be refused, though their outputs have the same shape."""
    branches = [
        {"kernel_shape": [k, k], "pads": [p] * 4, "strides": [s, s], "dilations": [d, d]}
        for k, p, s, d in specs
    ]
    proto = branches_onnx((8, 8), 2, branches, seed=1)
    source = open_model(proto)
    FoldParallelBranches().call(source.graph)
    check_graph(source.graph)
    x = torch.randn(1, 2, 8, 8)
    assert_close(output(source, x), run_onnx(proto, x))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, "stride"),
        ({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, "dilation"),
        ({"kernel_shape": [1, 5], "pads": [0, 2, 0, 2]}, "does not fall on the taps"),
    ],
)
def test_a_refusal_says_why(change: dict[str, list[int]], reason: str) -> None:
    plain = {
        "kernel_shape": [3, 3],
        "pads": [1, 1, 1, 1],
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    size = (1, 1) if "strides" in change else (6, 6)
    source = open_model(branches_onnx(size, 2, [plain, {**plain, **change}], seed=2))
    (note,) = FoldParallelBranches().call(source.graph).notes
    assert reason in note.text


def test_a_norm_that_only_the_sum_can_take_is_not_reported_as_left() -> None:
    source = open_model(randomised(RepVggBlock(8, 8)), example_inputs=(torch.randn(1, 8, 6, 6),))
    assert FoldBatchNorm().call(source.graph.copy()).notes
    assert not [note for note in run_pipeline(source.graph).notes if note.left]
