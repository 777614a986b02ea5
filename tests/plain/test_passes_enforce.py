"""enforce_pattern: verify or project, and say what that cost."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nmcompile.errors import PatternError
from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import NM, OneByN, Pruning, check, project, stored_share
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch


class Net(nn.Module):
    """Stem, plain, depthwise and pointwise convolution, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.plain = nn.Conv2d(16, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.hidden = nn.Linear(32, 16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(self.plain(self.stem(x).relu())))
        y: torch.Tensor = self.fc(self.hidden(x.mean((2, 3))))
        return y


X = torch.randn(1, 3, 12, 12)


@functools.cache
def exported() -> SourceModel:
    torch.manual_seed(0)
    return open_model(Net(), example_inputs=(X,))


def opened() -> SourceModel:
    """A fresh copy: exporting anew takes longer than the tests."""
    return dataclasses.replace(exported(), graph=exported().graph.copy())


def test_eligible_layers_are_projected_and_the_others_left() -> None:
    source = opened()
    before = {layer.name: layer.weight.copy() for layer in source.graph.layers()}
    result = EnforcePattern("2:4").call(source.graph)
    check_graph(source.graph)
    for layer in source.graph.layers():
        if layer.name in ("plain", "pointwise", "hidden"):
            assert np.array_equal(layer.weight, project(before[layer.name], NM(2, 4)))
        else:
            assert np.array_equal(layer.weight, before[layer.name])
    skipped = {row.layer: row.skipped for row in result.layers if row.skipped}
    assert list(skipped) == ["stem", "depthwise", "fc"]
    assert "depthwise" in str(skipped["depthwise"])
    assert "classifier" in str(skipped["fc"])


def test_the_dropped_energy_is_that_of_the_removed_weights() -> None:
    source = opened()
    before = next(layer.weight for layer in source.graph.layers() if layer.name == "plain").copy()
    result = EnforcePattern("1:4", Pruning(layers=["plain"])).call(source.graph)
    after = next(layer.weight for layer in source.graph.layers() if layer.name == "plain")
    (row,) = (row for row in result.layers if row.layer == "plain")
    expected = 1 - np.sum(after.astype(np.float64) ** 2) / np.sum(before.astype(np.float64) ** 2)
    assert row.energy_dropped == pytest.approx(expected, rel=1e-6)
    note = next(note for note in result.notes if note.layer == "plain")
    assert f"{100 * expected:.2f} %" in note.text


def test_a_named_layer_is_eligible_whatever_it_is() -> None:
    source = opened()
    EnforcePattern("2:4", Pruning(layers=["stem", "fc"])).call(source.graph)
    held = {la.name for la in source.graph.layers() if check(la.weight, NM(2, 4)).ok}
    assert held == {"stem", "fc"}


def test_excluded_layers_are_left_alone() -> None:
    source = opened()
    EnforcePattern("2:4", Pruning(exclude=["p*"])).call(source.graph)
    held = {la.name for la in source.graph.layers() if check(la.weight, NM(2, 4)).ok}
    assert held == {"hidden"}


def test_an_unknown_layer_name_is_an_error() -> None:
    with pytest.raises(PatternError, match=r"no layer is called plan: expected one of stem, plain"):
        EnforcePattern("2:4", Pruning(exclude=["plan"])).call(opened().graph)


def test_verify_names_layer_count_and_first_violation() -> None:
    source = opened()
    weight = next(layer.weight for layer in source.graph.layers() if layer.name == "plain")
    breach = check(weight, NM(2, 4))
    with pytest.raises(PatternError) as caught:
        EnforcePattern("2:4", Pruning(mode="verify")).call(source.graph)
    message = str(caught.value)
    assert "layer plain" in message
    assert f"in {breach.violations} groups" in message and str(breach.first) in message
    assert "2 more layers" in message and "pruning=Pruning()" in message


def test_verify_accepts_what_projection_made_and_changes_nothing() -> None:
    source = opened()
    EnforcePattern("2:4").call(source.graph)
    before = [layer.weight.copy() for layer in source.graph.layers()]
    result = EnforcePattern("2:4", Pruning(mode="verify")).call(source.graph)
    assert not result.modified
    after = [layer.weight for layer in source.graph.layers()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_1xn_that_keeps_more_than_the_density_is_an_error() -> None:
    with pytest.raises(PatternError, match=r"keeps 1\.000 of its weights"):
        EnforcePattern("1x16", Pruning(mode="verify", density=0.5)).call(opened().graph)


@given(st.sampled_from([4, 8, 16]), st.sampled_from([0.25, 0.5, 0.75]))
@examples(6)
def test_1xn_projection_passes_verification(n: int, density: float) -> None:
    source = opened()
    EnforcePattern(OneByN(n), Pruning(density=density)).call(source.graph)
    result = EnforcePattern(OneByN(n), Pruning(mode="verify", density=density)).call(source.graph)
    kept = {row.layer: row.density for row in result.layers if not row.skipped}
    assert kept == {name: density for name in ("plain", "pointwise", "hidden")}


@pytest.mark.parametrize("density", [None, 0.5])
def test_1xn_projection_of_unstructured_weights_passes_verification(density: float | None) -> None:
    source = opened()
    EnforcePattern("unstructured", Pruning(density=0.4)).call(source.graph)
    EnforcePattern("1x16", Pruning(density=0.5)).call(source.graph)
    result = EnforcePattern("1x16", Pruning(mode="verify", density=density)).call(source.graph)
    assert not result.modified


def test_zeros_inside_kept_blocks_do_not_count_as_dropped() -> None:
    source = opened()
    # Of a 3x3 window hardly ever all weights are zero.
    EnforcePattern("unstructured", Pruning(density=0.4)).call(source.graph)
    result = EnforcePattern("1x16", Pruning(layers=["plain"], density=0.5)).call(source.graph)
    assert result.modified
    weight = next(layer.weight for layer in source.graph.layers() if layer.name == "plain")
    assert stored_share(weight, OneByN(16)) == 0.5


def test_a_1xn_layer_of_the_right_density_need_not_be_uniform() -> None:
    source = opened()
    op = next(op for op in source.graph.ops() if op.name == "pointwise")
    assert op.weight is not None
    weight = op.weight.copy()  # 32 x 16: one group keeps 12 channels, the other 4
    weight[:16, 12:], weight[16:, 4:] = 0, 0
    source.graph.set_weight(op, weight, op.bias)
    result = EnforcePattern("1x16", Pruning(layers=["pointwise"], density=0.5)).call(source.graph)
    assert not result.modified


def test_auto_changes_nothing() -> None:
    source = opened()
    EnforcePattern("2:4", Pruning(layers=["plain"])).call(source.graph)
    result = EnforcePattern("auto").call(source.graph)
    assert not result.modified
    assert [str(row.pattern) for row in result.layers if row.layer == "plain"] == ["2:4"]


def test_onnx_weights_are_projected_like_torch_weights() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    source, twin = opened(), open_model(export_onnx(model, X))
    for graph in (source.graph, twin.graph):
        EnforcePattern("2:4").call(graph)
        check_graph(graph)
    for one, two in zip(source.graph.layers(), twin.graph.layers(), strict=True):
        assert one.name == two.name
        assert np.array_equal(one.weight, two.weight)
    assert_close(run_onnx(twin.native(), X), run_torch(source.native(), X))
