"""remove_zero_channels: what goes, that the function stays, and what stays for a reason."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel
from nmcompile.passes.pipeline import check_graph
from nmcompile.passes.removal.uniform import uniform_channels
from nmcompile.passes.remove_zero_channels import RemovalResult, RemoveZeroChannels
from nmcompile.sparsity import check, detect, parse_pattern, project
from tests.support.examples import examples
from tests.support.mixed_models import FLOAT, by_onnxruntime, model, node
from tests.support.permutable_models import NETWORKS, Block, X, network, residual
from tests.support.random_networks import Random
from tests.support.seed_modules import (
    assert_close,
    export_onnx,
    randomised,
    run_onnx,
    run_torch,
)

Array = np.ndarray[Any, Any]
ln_structured: Callable[..., Any] = prune.ln_structured
KINDS = ["torch", "onnx"]


def opened(model: nn.Module, kind: str, x: Tensor = X) -> SourceModel:
    """Folded, with all channels."""
    if kind == "torch":
        return open_folded(model, (x,), smaller=False)[0]
    return open_folded(export_onnx(model, x, dynamo="dynamo" in kind), smaller=False)[0]


def removed(source: SourceModel, model: nn.Module, x: Tensor = X) -> RemovalResult:
    """What the pass says, after making sure that the function is the model's."""
    result = RemoveZeroChannels().call(source.graph)
    check_graph(source.graph)
    found = (run_torch if source.kind == "torch" else run_onnx)(source.native(), x)
    assert_close(found, run_torch(model, x))
    assert not RemoveZeroChannels().call(source.graph).modified
    return result


def filters(source: SourceModel) -> dict[str, int]:
    return {layer.name: len(layer.weight) for layer in source.graph.layers()}


@torch.no_grad()
def kill(model: nn.Module, seed: int, filters: float = 0.5, columns: float = 0.0) -> nn.Module:
    """Zero filters, and what filters have for whole input channels, at random."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight[torch.rand(len(module.weight), generator=draw) < filters] = 0
            module.weight[:, torch.rand(module.weight.shape[1], generator=draw) < columns] = 0
    return model


@functools.cache
def pruned(name: str) -> nn.Module:
    return kill(network(name), 1)


FEWER = {
    "residual": {"2.layers.0.0", "3.layers.0.0", "4.layers.0.0", "5.hidden"},
    "bottleneck": {"5.hidden"},
    "dense": {"0.0", "2.convs.0", "2.convs.1", "2.convs.2", "2.transition", "3.hidden"},
    "flat": {"0.0", "2.conv", "2.one", "2.two"},
    "shuffle": {"2.last", "2.free", "3.hidden"},
    "shared": {"2.free", "2.last", "3.hidden"},
}
"""Layers that must lose filters."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in NETWORKS for kind in KINDS), ("residual", "dynamo onnx")],
)
def test_zero_filters_go_and_the_function_stays(name: str, kind: str) -> None:
    model = pruned(name)
    source = opened(model, kind)
    before = filters(source)
    result = removed(source, model)
    fewer = {layer for layer, count in filters(source).items() if count < before[layer]}
    assert fewer >= FEWER.get(name, {"3.hidden"})
    assert {layer for layer, shape in result.shapes.items() if shape[0] == before[layer]} >= fewer
    assert fewer <= {note.layer for note in result.notes}
    # The model that was opened is whole.
    assert_close(run_torch(model, X), run_torch(kill(network(name), 1), X))


@examples(6, 120)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    columns=st.sampled_from([0.0, 0.3]),
)
@example(seed=453, kind="torch", columns=0.3)  # only filters that go need what is constant
def test_random_networks_keep_their_function(seed: int, kind: str, columns: float) -> None:
    model = kill(Random(seed).eval(), seed, 0.5, columns)
    removed(opened(model, kind), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_network_of_ln_structured_has_half_of_its_inner_filters(kind: str) -> None:
    torch.manual_seed(0)
    model = randomised(residual())
    for block in filter(lambda module: isinstance(module, Block), model.modules()):
        conv, norm = block.get_submodule("layers.0.0"), block.get_submodule("layers.0.1")
        ln_structured(conv, "weight", 0.5, n=2, dim=0)
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        with torch.no_grad():  # of a channel that is always zero
            norm.running_mean[:] = 0
            norm.bias[:] = -norm.bias.abs()
    source = opened(model, kind)
    removed(source, model)
    left = filters(source)
    assert [left[f"{index}.layers.0.0"] for index in (2, 3, 4)] == [8, 8, 8]
    assert left["4.layers.1.0"] == 32  # a sum reads them
    shapes = {layer.name: layer.weight.shape for layer in source.graph.layers()}
    assert shapes["4.layers.1.0"] == (32, 8, 3, 3)


class Chain(nn.Module):
    """A convolution, something in between, and a layer that reads its 8 channels."""

    def __init__(self, between: Callable[[Tensor], Tensor], padding: int, first: int = 8) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, first, 3), nn.Conv2d(8, 4, 3, padding=padding)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.between(self.one(x)))
        return y


def chain(
    between: Callable[[Tensor], Tensor] = functional.relu,
    padding: int = 1,
    bias: float = -1.0,
    dead: int = 3,
    first: int = 8,
) -> Chain:
    """With filters 1, 2, ... of the first layer zero, and their biases alike."""
    torch.manual_seed(0)
    model = Chain(between, padding, first)
    with torch.no_grad():
        model.one.weight[1 : 1 + dead] = 0
        assert model.one.bias is not None
        model.one.bias[1 : 1 + dead] = bias * torch.arange(1.0, 1.0 + dead)
    return model.eval()


@pytest.mark.parametrize(
    ("between", "padding", "bias", "left"),
    [
        (functional.relu, 1, -1.0, 5),
        (functional.relu, 1, 0.0, 5),
        (functional.relu, 0, 1.0, 5),  # into the bias
        (functional.relu, 1, 1.0, 6),  # one stands for all at the border
        (functional.gelu, 1, 0.5, 6),
        (functional.silu, 0, 0.5, 5),
        (functional.hardswish, 1, -3.0, 5),
        (functional.sigmoid, 1, 0.0, 6),
        (lambda y: functional.relu(y) - 0.5, 1, -1.0, 6),
        (lambda y: functional.max_pool2d(y, 3, 1, 1), 1, 1.0, 6),
        (lambda y: functional.avg_pool2d(y, 3, 1, 1), 1, 0.0, 5),
        (lambda y: functional.avg_pool2d(y, 3, 1, 1), 1, 1.0, 8),  # counts the zeros around
        (lambda y: functional.avg_pool2d(y, 2), 1, 1.0, 6),
        (lambda y: functional.pad(y, (1, 1, 1, 1)), 0, 0.0, 5),
        (lambda y: functional.pad(y, (1, 1, 1, 1)), 0, 1.0, 8),
        (lambda y: functional.pad(y, (1, 1, 1, 1), value=1.0), 0, 0.0, 8),
        (lambda y: functional.pad(y, (1, 1, 1, 1), mode="reflect"), 0, 1.0, 5),
        (lambda y: functional.interpolate(y, scale_factor=2.0, mode="bilinear"), 1, 1.0, 6),
        (lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)), 1, 0.0, 5),
        (lambda y: y * y.flip(1), 1, 0.0, 8),
        (lambda y: y.reciprocal(), 1, 1.0, 6),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_of_a_bias_decides(
    kind: str, between: Callable[[Tensor], Tensor], padding: int, bias: float, left: int
) -> None:
    model = chain(between, padding, bias)
    source = opened(model, kind)
    removed(source, model)
    assert filters(source)["one"] == left


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_of_infinities_stays(kind: str) -> None:
    source = opened(chain(torch.reciprocal, bias=0.0), kind)
    result = RemoveZeroChannels().call(source.graph)
    assert not result.modified
    assert filters(source)["one"] == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_nobody_multiplies_goes_with_all_before_it(kind: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[4].weight[:, [0, 5, 6]] = 0  # type: ignore[operator]
        layers[2].weight[[1, 2, 3, 4, 7], 2:] = 0  # type: ignore[operator]
    source = opened(model, kind)
    removed(source, model)
    assert list(filters(source).values()) == [2, 5, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_a_filter_that_counts_keeps_one(kind: str) -> None:
    model = chain(dead=0)
    with torch.no_grad():
        model.one.weight[:] = 0
        assert model.one.bias is not None
        model.one.bias[:] = -1
    source = opened(model, kind)
    result = removed(source, model)
    assert filters(source) == {"one": 1, "two": 4}
    assert any("is zero and stays" in note.text for note in result.notes)


@pytest.mark.parametrize(
    ("pattern", "dead", "left", "kept"),
    [
        ("2:4", range(0, 3), 32, True),  # torn groups would skip nothing
        ("2:4", range(4, 9), 28, True),  # one group as a whole
        ("2:4", range(1, 30), 3, False),  # more than skipping halves
        ("1x16", range(3, 6), 32, True),
        ("1x16", range(16, 32), 16, True),
        ("dense", range(0, 3), 29, True),
    ],
)
def test_a_pattern_is_torn_only_for_fewer_multiplications(
    pattern: str, dead: range, left: int, kept: bool
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 32, 6, 6)
    wanted = parse_pattern(pattern)
    with torch.no_grad():
        for index in (0, 2):
            weight = layers[index].weight
            assert isinstance(weight, Tensor)
            # Each input channel counts for some block, so that none can go for that.
            weight[:16, ::2] *= 8
            weight[16:, 1::2] *= 8
            density = 0.5 if "x" in pattern else None
            weight[:] = torch.from_numpy(project(weight.numpy(), wanted, density))
        layers[0].weight[list(dead)] = 0  # type: ignore[operator]
        layers[0].bias[list(dead)] = -1  # type: ignore[operator]
    source = opened(model, "onnx", x)
    result = removed(source, model, x)
    first, second = source.graph.layers()
    assert len(first.weight) == left == second.weight.shape[1]
    if pattern != "dense":
        assert (detect(second.weight).pattern == wanted) == kept
        assert not kept or check(first.weight, wanted).ok
    if left == 32:
        assert any("patterns of the layers" in note.text for note in result.notes)


def test_blocks_stay_in_order_where_one_of_their_filters_could_go() -> None:
    """That the others are found wherever they lie does not help: no integer kernel takes such."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 128, 1), nn.ReLU(), nn.Conv2d(128, 256, 1)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 64, 6, 6)
    with torch.no_grad():
        for index in (0, 2):
            weight = layers[index].weight
            assert isinstance(weight, Tensor)
            weight[:] = torch.from_numpy(project(weight.numpy(), parse_pattern("1x16"), 0.5))
        layers[2].weight[:, 80] = 0  # type: ignore[operator]
    source = opened(model, "onnx", x)
    removed(source, model, x)
    for layer in source.graph.layers():
        found = detect(layer.weight)
        assert found.pattern == parse_pattern("1x16") and found.order is None


def test_channels_of_one_number_are_what_torch_computes() -> None:
    model = chain(functional.gelu, 0, 0.7)
    source = opened(model, "torch")
    known = uniform_channels(source.graph)
    (made,) = [known[op.output] for op in source.graph.ops() if "gelu" in op.where]
    expected = functional.gelu(0.7 * torch.arange(1.0, 4.0)).numpy()
    np.testing.assert_allclose(made[1:4], expected, rtol=1e-6)
    assert np.isnan(made[[0, 4, 5, 6, 7]]).all()


@pytest.mark.parametrize(
    "last",
    [
        [node("Gather", ["table", "places"], ["y"])],
        [node("Cast", ["places"], ["f"], to=FLOAT), node("MatMul", ["table", "f"], ["y"])],
    ],
    ids=["Gather", "MatMul"],
)
def test_a_constant_that_is_read_with_a_tensor_of_unknown_length_stays(last: list[Any]) -> None:
    """How many places NonZero finds is not known, nor is the shape of what is made of them."""
    weights = {"table": np.arange(16, dtype=np.float32).reshape(8, 2) - 7}
    nodes = [node("NonZero", ["x"], ["places"]), *last]
    proto = model(nodes, weights, [("y", FLOAT, None)], [("x", FLOAT, (2, 6))])
    x = np.array([[0, 1, 0, 2, 1, 1], [0, 0, 1, 0, 0, 1]], np.float32)
    folded = open_folded(proto)[0].native()
    (found,), (wanted,) = (by_onnxruntime(each, {"x": x}) for each in (folded, proto))
    np.testing.assert_array_equal(found, wanted)
