"""The driver, the invariants it can check, and the refusal of broken weights."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nmcompile.errors import ModelError, PatternError, WeightError
from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.checks.weights import check_weights
from nmcompile.passes.graphs.interface import Graph, PassResult
from nmcompile.passes.pipeline import FOLD_PIPELINE, check_graph, run_pipeline
from tests.support.seed_modules import (
    SeedNet,
    assert_close,
    export_onnx,
    randomised,
    run_onnx,
    run_torch,
)


def small(kind: str = "torch") -> SourceModel:
    model = randomised(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    x = torch.randn(1, 4, 6, 6)
    if kind == "torch":
        return open_model(model, example_inputs=(x,))
    return open_model(export_onnx(nn.Sequential(model, nn.Conv2d(8, 8, 1)), x))


@pytest.mark.parametrize("kind", ["torch", "onnx-legacy", "onnx-dynamo"])
def test_a_network_of_all_methods_folds_and_keeps_its_function(kind: str) -> None:
    torch.manual_seed(0)
    model, x = randomised(SeedNet()), torch.randn(2, 3, 16, 16)
    if kind == "torch":
        source = open_model(model, example_inputs=(x,))
    else:
        source = open_model(export_onnx(model, x, dynamo=kind == "onnx-dynamo"))
    assert run_pipeline(source.graph, verify=True).modified
    kinds = [op.kind for op in source.graph.ops()]
    assert kinds.count("conv") == 11
    assert "batch_norm" not in kinds
    found = (run_torch if kind == "torch" else run_onnx)(source.native(), x)
    assert_close(found, run_torch(model, x))


def test_a_second_run_changes_nothing() -> None:
    source = small()
    assert run_pipeline(source.graph).modified
    assert not run_pipeline(source.graph).modified


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_copy_is_independent(kind: str) -> None:
    source = small(kind)
    copied = source.graph.copy()
    weight = source.graph.layers()[0].weight
    op = next(op for op in copied.ops() if op.kind == "conv")
    copied.set_weight(op, np.zeros_like(weight), op.bias)
    check_graph(copied)
    check_graph(source.graph)
    assert not copied.layers()[0].weight.any()
    assert source.graph.layers()[0].weight.any()


class Failing:
    name = "failing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def call(self, graph: Graph) -> PassResult:
        raise self.error


def test_a_failure_names_the_pass_and_those_before_it() -> None:
    with pytest.raises(ModelError, match="pass failing, after materialize_weights, fold_batchnorm"):
        run_pipeline(small().graph, (*FOLD_PIPELINE[:2], Failing(KeyError("lost"))))


def test_an_error_on_purpose_keeps_its_class_and_message() -> None:
    with pytest.raises(PatternError) as caught:
        run_pipeline(small().graph, (Failing(PatternError("no such pattern")),))
    assert str(caught.value) == "no such pattern"
    assert caught.value.__notes__ == ["raised by pass failing, after no other pass"]


def test_progress_is_told_before_every_pass() -> None:
    seen: list[str] = []
    run_pipeline(small().graph, on_pass=seen.append)
    assert seen == [step.name for step in FOLD_PIPELINE]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_weights_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        weight = model[2].weight
        assert isinstance(weight, torch.Tensor)
        weight[3, 5] = value
    x = torch.randn(1, 4, 6, 6)
    source = (
        open_model(model, example_inputs=(x,))
        if kind == "torch"
        else open_model(export_onnx(model, x))
    )
    with pytest.raises(WeightError, match=r"layer 2: its weight holds 1 .*index \(3, 5, 0, 0\)"):
        check_weights(source.graph)


def test_a_negative_variance_shows_as_a_bias_or_weight_that_is_not_finite() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).eval()
    variance = model[1].running_var
    assert isinstance(variance, torch.Tensor)
    variance[2] = -1.0
    source = open_model(model, example_inputs=(torch.randn(1, 4, 6, 6),))
    run_pipeline(source.graph)
    with pytest.raises(WeightError, match="layer 0: its weight holds 36 values"):
        check_weights(source.graph)


def test_a_dimension_of_size_zero_is_refused() -> None:
    source = small("onnx")
    op = next(op for op in source.graph.ops() if op.kind == "conv")
    source.graph.set_weight(op, np.zeros((0, 4, 1, 1)), None)
    with pytest.raises(WeightError, match=r"layer 0.0: its weight has the shape \(0, 4, 1, 1\)"):
        check_weights(source.graph)


def test_finite_weights_pass() -> None:
    check_weights(small().graph)


def test_the_invariants_catch_a_weight_that_does_not_fit() -> None:
    source = small()
    op = next(op for op in source.graph.ops() if op.kind == "conv")
    source.graph.set_weight(op, np.zeros((8, 5, 3, 3), np.float32), None)
    with pytest.raises(AssertionError, match="0 reads 4 channels, expects 5"):
        check_graph(source.graph)


def test_importing_the_package_needs_no_framework() -> None:
    code = (
        "import sys, nmcompile.passes, nmcompile.passes.pipeline\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'tvm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_wrong_package_name_says_which_is_right() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import passes"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "import nmcompile.passes, not passes" in result.stderr
