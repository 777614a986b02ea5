"""Whatever has constant weights is held against a pattern, or the claim is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nmcompile import compile, inspect
from nmcompile.errors import PatternError
from nmcompile.folding import open_folded
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.sparsity import NM, VERIFY, detect, project

Array = Any
TWO_FOUR = NM(2, 4)


def drawn(*shape: int) -> Array:
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 1, shape).astype(np.float32)


TORCH: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(16, 8, 3), (1, 16, 20)),
    "conv3d": (lambda: nn.Conv3d(16, 8, 3), (1, 16, 5, 6, 7)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(16, 8, 3, groups=2), (1, 16, 6, 7)),
}


def torch_model(kind: str, pruned: bool) -> tuple[nn.Module, torch.Tensor]:
    build, shape = TORCH[kind]
    layer = build()
    assert isinstance(layer, nn.Conv1d | nn.Conv3d | nn.ConvTranspose2d)
    weight = drawn(*layer.weight.shape)
    if kind == "conv_transpose2d":  # (I, O / groups, ...): pruned as what it computes with
        halves = [half.swapaxes(0, 1) for half in np.split(weight, 2)]
        halves = [project(half, TWO_FOUR) if pruned else half for half in halves]
        weight = np.concatenate([half.swapaxes(0, 1) for half in halves])
    elif pruned:
        flat = weight.reshape(*weight.shape[:2], 1, -1)
        weight = project(flat, TWO_FOUR).reshape(weight.shape)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    return nn.Sequential(layer).eval(), torch.zeros(shape)


def verify(model: Any, example: Any = None, pattern: str = "2:4") -> Any:
    source, _ = open_folded(model, example)
    return EnforcePattern(pattern, VERIFY).call(source.graph)


@pytest.mark.parametrize("kind", TORCH)
def test_torch_weights_without_a_kernel_are_checked(kind: str) -> None:
    model, x = torch_model(kind, pruned=True)
    (row,) = verify(model, (x,)).layers
    assert (row.layer, row.skipped, str(row.pattern), row.density) == ("0", None, "2:4", 0.5)
    dense, _ = torch_model(kind, pruned=False)
    with pytest.raises(PatternError, match=r"layer 0: its weight of shape .* breaks 2:4"):
        verify(dense, (x,))


@pytest.mark.parametrize("kind", TORCH)
def test_torch_weights_without_a_kernel_are_reported(kind: str) -> None:
    model, x = torch_model(kind, pruned=True)
    source, _ = open_folded(model, (x,))
    (other,) = source.graph.weighted()
    assert other.op == kind and other.weight is not None
    assert detect(other.weight).pattern == TWO_FOUR


def onnx_model(
    nodes: list[onnx.NodeProto], arrays: dict[str, Array], dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", dtype, [1, 16, 9, 9])],
        [tensor("y", TensorProto.INT32 if dtype != TensorProto.FLOAT else dtype, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def quantised(pruned: bool, zero: int) -> Array:
    """Integers of which half are the zero point, or none."""
    weight = np.random.default_rng(0).integers(1, 100, (16, 16, 3, 3)).astype(np.int8)
    if pruned:
        weight *= project(weight.astype(np.float32), TWO_FOUR) != 0
    return weight + np.int8(zero)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("zero", [0, 3])
def test_weights_behind_dequantize_are_layers(per_channel: bool, zero: int) -> None:
    shape = (16,) if per_channel else ()
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4),
    ]
    arrays: dict[str, Array] = {
        "s": np.full(shape, 0.01, np.float32),
        "z": np.full(shape, zero, np.int8),
    }
    pruned = onnx_model(nodes, arrays | {"q": quantised(True, zero)})
    (row,) = verify(pruned).layers
    assert (str(row.pattern), row.density, row.skipped) == ("2:4", 0.5, None)
    (layer,) = inspect(pruned).layers
    assert layer.pattern == "2:4" and layer.sparse
    with pytest.raises(PatternError, match="breaks 2:4"):
        verify(onnx_model(nodes, arrays | {"q": quantised(False, zero)}))


def test_integer_convolutions_are_checked_with_their_zero_point() -> None:
    node = helper.make_node("ConvInteger", ["x", "q", "", "z"], ["y"], pads=[1] * 4)

    def model(pruned: bool) -> onnx.ModelProto:
        arrays = {"q": quantised(pruned, 5), "z": np.full(16, 5, np.int8)}
        return onnx_model([node], arrays, TensorProto.UINT8)

    (row,) = verify(model(True)).layers
    assert (str(row.pattern), row.density) == ("2:4", 0.5)
    with pytest.raises(PatternError, match="breaks 2:4"):
        verify(model(False))


def test_a_claim_about_nothing_is_refused(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.zeros(1, 3, 3, 3)
    with pytest.raises(PatternError, match=r"at least one layer that it concerns.*0: .*classifier"):
        compile(model, output=tmp_path / "m.nmc", example_inputs=(x,), pattern="2:4")
    with pytest.raises(PatternError, match="no layer with constant weights"):
        compile(nn.ReLU(), output=tmp_path / "m.nmc", example_inputs=(x,), pattern="2:4")


def test_what_cannot_be_read_is_reported_with_its_reason() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.cell(x)[0]
            return y

    with pytest.raises(PatternError, match="recurrent layers are not read"):
        verify(Net().eval(), (torch.zeros(1, 5, 8),))
