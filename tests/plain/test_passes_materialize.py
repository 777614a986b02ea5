"""materialize_weights: whatever depends on parameters only becomes a constant."""

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nmcompile.frontends import open_model
from nmcompile.passes.graphs.onnx.constants import evaluate
from nmcompile.passes.materialize_weights import MaterializeWeights
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import NM, OneByN, Pattern, check
from tests.support.examples import examples
from tests.support.seed_modules import (
    LbcConv,
    SeedNet,
    SrSteConv,
    SubpConv,
    assert_close,
    export_onnx,
    parametrized_conv,
    pruned_conv,
    randomised,
    run_onnx,
    run_torch,
)

METHODS: dict[str, tuple[Callable[[], nn.Module], Pattern]] = {
    "sr-ste": (lambda: SrSteConv(16, 16, 3, padding=1), NM(2, 4)),
    "sr-ste-1:4": (lambda: SrSteConv(16, 16, 1, n=1), NM(1, 4)),
    "lbc": (lambda: LbcConv(16, 16, 3, padding=1), NM(2, 4)),
    "subp": (lambda: SubpConv(16, 16, 3, padding=1), OneByN(8)),
    "prune": (lambda: pruned_conv(16, 16, 3), OneByN(16)),
    "parametrize": (lambda: parametrized_conv(16, 16, 3), OneByN(16)),
}


class Wrapped(nn.Module):
    """Gives the layer a name to be recognised by."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(layer, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x)
        return y


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_method_becomes_one_plain_convolution(method: str, kind: str) -> None:
    torch.manual_seed(0)
    make, pattern = METHODS[method]
    model, x = Wrapped(make()).eval(), torch.randn(2, 16, 6, 6)
    expected = run_torch(model, x)
    if kind == "torch":
        source = open_model(model, example_inputs=(x,))
    else:
        source = open_model(export_onnx(model, x))
    MaterializeWeights().call(source.graph)
    check_graph(source.graph)
    (layer,) = source.graph.layers()
    assert [op.kind for op in source.graph.ops()] == ["conv", "other"]
    assert layer.name == "block.0"
    assert check(layer.weight, pattern).ok
    assert np.count_nonzero(layer.weight) <= layer.weight.size / 2
    run = run_torch if kind == "torch" else run_onnx
    assert_close(run(source.native(), x), expected)


def test_the_users_model_is_not_changed() -> None:
    model, x = Wrapped(SrSteConv(8, 8, 3)).train(), torch.randn(1, 8, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    MaterializeWeights().call(open_model(model, example_inputs=(x,)).graph)
    assert all(module.training for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_weight_used_twice_is_materialised_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.conv.weight.abs()
            y = nn.functional.conv2d(x, weight).relu()
            return nn.functional.conv2d(y, weight)

    x = torch.randn(1, 8, 4, 4)
    model = Tied().eval()
    source = open_model(model, example_inputs=(x,))
    MaterializeWeights().call(source.graph)
    check_graph(source.graph)
    assert len(source.native().state_dict()) == 1
    assert [layer.name for layer in source.graph.layers()] == ["conv", "conv_1"]
    assert_close(run_torch(source.native(), x), run_torch(model, x))


def test_random_operators_stay() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(4)

    source = open_model(Noisy(), example_inputs=(torch.zeros(4),))
    MaterializeWeights().call(source.graph)
    first, second = (source.native()(torch.zeros(4)) for _ in range(2))
    assert not torch.equal(first, second)


def test_random_onnx_operators_stay() -> None:
    nodes = [
        helper.make_node("RandomUniform", [], ["r"], shape=[4]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "noisy", info[:1], info[1:])
    source = open_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    result = MaterializeWeights().call(source.graph)
    assert not result.modified
    assert len(source.graph.ops()) == 2


def test_shapes_that_are_known_fold_in_onnx() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([-1], np.int64), "rest"),
    ]
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k"]),
    ]
    graph = helper.make_graph(nodes, "flatten", info[:1], info[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    source = open_model(proto, shapes={"x": (4, 2, 3)})
    MaterializeWeights().call(source.graph)
    check_graph(source.graph)
    assert [op.handle.op_type for op in source.graph.ops()] == ["Reshape"]
    assert source.graph.shape(source.graph.outputs()[0]) == (4, 6)


def test_what_lies_behind_a_computed_shape_folds_too() -> None:
    """Padding and stride are known only once the shape before them has been computed."""
    weight = np.ones((2, 2, 3, 3), np.float32)
    nodes = [
        helper.make_node("Concat", ["half", "half"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, 0, 1, 1], np.int64), "half"),
        numpy_helper.from_array(weight, "w"),
    ]
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 6]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "padded", info[:1], info[1:], constants)
    opsets = [helper.make_opsetid("", 17)]
    source = open_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    MaterializeWeights().call(source.graph)
    (layer,) = source.graph.layers()
    assert layer.input_shape == (1, 2, 7, 8)
    assert layer.padding == (1, 0, 1, 1)


def test_identities_are_bypassed_but_outputs_keep_their_names() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "copies", info[:1], info[1:])
    source = open_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    MaterializeWeights().call(source.graph)
    check_graph(source.graph)
    assert [op.handle.op_type for op in source.graph.ops()] == ["Relu", "Identity"]
    assert source.outputs == ("y",)


def test_no_trace_of_the_training_methods_is_left_in_onnx() -> None:
    torch.manual_seed(1)
    model, x = randomised(SeedNet()), torch.randn(2, 3, 16, 16)
    proto = export_onnx(model, x)
    assert {"TopK", "ScatterElements", "Equal"} <= {node.op_type for node in proto.graph.node}
    source = open_model(proto)
    MaterializeWeights().call(source.graph)
    check_graph(source.graph)
    left = {node.op_type for node in source.native().graph.node}
    assert left == {"Conv", "BatchNormalization", "Relu", "Clip", "Add", "ReduceMean", "Gemm"}
    assert_close(run_onnx(source.native(), x), run_onnx(proto, x))


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=24),
    st.booleans(),
    st.integers(1, 24),
)
@examples(60)
def test_topk_breaks_ties_by_the_lower_index(values: list[int], largest: bool, k: int) -> None:
    data = np.array(values, np.float32)
    k = min(k, len(data))
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], largest=int(largest))
    results = evaluate(node, {"x": data, "k": np.array([k])}, 17)
    assert results is not None
    order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))
    assert results[1].tolist() == order[:k]
    assert results[0].tolist() == [values[i] for i in order[:k]]


@given(st.integers(0, 1), st.integers(1, 4), st.integers(1, 4), st.randoms())
@examples(40)
def test_scatter_elements_agrees_with_a_loop(
    axis: int, rows: int, columns: int, random: Random
) -> None:
    data = np.zeros((4, 4), np.float32)
    length = data.shape[axis]
    index = np.array(
        [[random.randrange(-length, length) for _ in range(columns)] for _ in range(rows)]
    )
    updates = np.arange(1.0, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=axis)
    results = evaluate(node, {"x": data, "i": index, "u": updates}, 17)
    expected = data.copy()
    for r in range(rows):
        for c in range(columns):
            target = (index[r, c], c) if axis == 0 else (r, index[r, c])
            expected[target] = updates[r, c]
    assert results is not None
    assert results[0].tolist() == expected.tolist()


def test_an_operator_that_the_evaluator_lacks_is_left() -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    assert evaluate(node, {"x": np.zeros(1, np.float32)}, 17) is None
