"""fold_layernorm: scales and shifts go into the products behind, and the function stays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import check, parse_pattern
from tests.support.attention_models import ATTENTION, IMAGES, names, transformer
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch


def folded(model: nn.Module, x: Tensor, kind: str) -> SourceModel:
    if kind == "torch":
        return open_folded(model, (x,))[0]
    return open_folded(export_onnx(model, x, dynamo=kind == "dynamo onnx"))[0]


def output(source: SourceModel, x: Tensor) -> Any:
    return (run_torch if source.kind == "torch" else run_onnx)(source.native(), x)


def norms(source: SourceModel) -> list[bool]:
    """For each layer norm whether it scales or shifts."""
    found = []
    for op in source.graph.ops():
        if "layer_norm" in op.where or "LayerNormalization" in op.where:
            affine = op.affine
            found.append(
                affine is not None and bool((affine.scale != 1).any() or affine.shift.any())
            )
    return found


@pytest.mark.parametrize("kind", ["torch", "onnx", "dynamo onnx"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_norms_of_transformers_normalise_only(attention: str, kind: str) -> None:
    model = transformer(attention)
    source = folded(model, IMAGES, kind)
    check_graph(source.graph)
    assert norms(source) == [False] * 5
    assert_close(output(source, IMAGES), run_torch(model, IMAGES))
    stored = dict(model.named_parameters())
    weight = next(la.weight for la in source.graph.layers() if la.name == "blocks.1.fc1")
    scaled = stored["blocks.1.fc1.weight"] * stored["blocks.1.norm2.weight"]
    np.testing.assert_allclose(weight, scaled.detach(), rtol=1e-6)


@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
def test_patterns_survive(pattern: str) -> None:
    model = nmcompile.enforce(
        transformer("fused"), pattern, example_inputs=IMAGES,
        pruning=nmcompile.Pruning(density=0.5 if "x" in pattern else None),
    )  # fmt: skip
    for layer in folded(model, IMAGES, "torch").graph.layers():
        assert (layer.name not in names("fused")) or check(layer.weight, parse_pattern(pattern)).ok


class Around(nn.Module):
    """A norm, and something that reads it."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], axes: int = 1, **options: Any) -> None:
        super().__init__()
        shape = (8,) if axes == 1 else (6, 8)
        self.norm, self.one, self.two = (
            nn.LayerNorm(shape, **options),
            nn.Linear(8, 4),
            nn.Linear(8, 4),
        )
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)
        self.conv, self.use = nn.Conv1d(6, 4, 1), use

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.use(self, self.norm(x))
        return y


T = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(3))

FOLDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "one product": lambda m, y: m.one(y),
    "two products": lambda m, y: m.one(y) * m.two(y),
    "tokens first": lambda m, y: m.one(y.transpose(0, 1)),
    "one token": lambda m, y: m.one(y[:, 2]),
    "tokens of all images": lambda m, y: m.one(y.reshape(18, 8)),
    "one as another": lambda m, y: m.one(y[:, 1:]).sum(1) + m.two(y.flatten(0, 1)).sum(0),
}
STAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a sum": lambda m, y: m.one(y) + y[..., :4],
    "an activation": lambda m, y: m.one(y.relu()),
    "the output": lambda m, y: y,
    "tokens": lambda m, y: m.conv(y),
    "half of the channels": lambda m, y: functional.linear(y[..., :4], m.one.weight[:, :4]),
    "one weight twice": lambda m, y: m.one(y) + m.one(y.exp()),
    "channels as tokens": lambda m, y: m.one(y.reshape(3, 8, 6).transpose(1, 2)),
    "a mean": lambda m, y: m.one(y.mean(1)),
}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", [*FOLDS, *STAYS])
def test_only_products_take_what_a_norm_scales(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = Around(FOLDS.get(name) or STAYS[name]).eval()
    source = folded(model, T, kind)
    check_graph(source.graph)
    assert norms(source) == [name in STAYS]
    assert_close(output(source, T), run_torch(model, T))


class Row(nn.Module):
    """Norms and products behind each other: all the products have one bias, if any."""

    def __init__(self, shift: bool, bias: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8, bias=shift) for _ in range(5))
        self.products = nn.ModuleList(nn.Linear(8, 8, bias=bias) for _ in range(5))
        for product in self.products:
            product.bias = self.products[0].bias
        for parameter in self.norms.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        zero, one, two, three, four = self.norms
        first, second, third, fourth, fifth = self.products
        x = first(zero(x)).relu()
        x = second(one(x)[:, 1:])
        y = three(two(x))  # of two in a row the first stays
        x = third(y) * fourth(y.transpose(0, 1)).transpose(0, 1)
        y = fifth(four(x))
        return y


@pytest.mark.parametrize("kind", ["torch", "onnx", "dynamo onnx"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_norms_behind_norms(shift: bool, bias: bool, kind: str) -> None:
    torch.manual_seed(0)
    model = Row(shift, bias).eval()
    source = folded(model, T, kind)
    check_graph(source.graph)
    assert norms(source) == [False, False, True, False, False]
    assert_close(output(source, T), run_torch(model, T), 1e-4)


@examples(8, 150)
@given(
    bias=st.booleans(), shift=st.booleans(), rank=st.integers(1, 3),
    kind=st.sampled_from(["torch", "onnx"]), width=st.integers(1, 9), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_shapes_and_biases(
    bias: bool, shift: bool, rank: int, kind: str, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    norm = nn.LayerNorm(width, bias=shift)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(norm, nn.Linear(width, 3, bias=bias), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(*[2, 3, 4][:rank], width)
    source = folded(model, x, kind)
    assert norms(source) == [False]
    # Two values are normalised to 1 and -1 but for eps, one to 0: errors are those of the norm.
    assert_close(output(source, x), run_torch(model, x), 1e-4)


def test_norms_over_several_axes_and_without_scales_stay() -> None:
    for model in (Around(FOLDS["one product"], 2), Around(FOLDS["one product"], bias=False)):
        for kind in ("torch", "onnx"):
            source = folded(model.eval(), T, kind)
            assert_close(output(source, T), run_torch(model, T))
    assert norms(folded(Around(FOLDS["one product"], bias=False).eval(), T, "torch")) == [False]


def test_rms_norms_fold_too() -> None:
    torch.manual_seed(0)
    norm = nn.RMSNorm(8)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(norm, nn.Linear(8, 4)).eval()
    source = folded(model, T, "torch")
    assert "rms_norm.default" in next(op.where for op in source.graph.ops())
    assert source.graph.ops()[0].affine is None
    assert_close(output(source, T), run_torch(model, T))
