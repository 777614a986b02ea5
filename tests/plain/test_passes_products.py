"""Products with constants in all their forms: layers of ours, and the same function."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nmcompile.folding import open_folded
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import NM, check
from tests.plain.test_passes_permute import shake
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, run_onnx, run_torch

Array = Any


def onnx_model(nodes: Any, shape: list[int], **arrays: Array) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "products",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def drawn(random: Any, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


@examples(40)
@given(data=st.data())
def test_gemm_in_all_its_forms(data: Any) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    turned = {name: data.draw(st.integers(0, 1)) for name in ("transA", "transB")}
    factors = {
        name: data.draw(st.sampled_from([1.0, 0.5, -2.0, 0.0])) for name in ("alpha", "beta")
    }
    left = data.draw(st.booleans())
    rows, inner, columns = (data.draw(st.integers(1, 6)) for _ in range(3))
    a, b = (
        (rows, inner)[:: -1 if turned["transA"] else 1],
        (inner, columns)[:: -1 if turned["transB"] else 1],
    )
    shape, weight = (b, drawn(random, *a)) if left else (a, drawn(random, *b))
    bias = {
        "c": drawn(random, *data.draw(st.sampled_from([(columns,), (rows, columns), (1,), ()])))
    }
    if data.draw(st.booleans()):
        bias = {}
    names = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node("Gemm", [*names, *bias], ["y"], name="g", **turned, **factors)
    model = onnx_model([node], list(shape), w=weight, **bias)
    x = torch.from_numpy(drawn(random, *shape))
    source, _ = open_folded(model)
    check_graph(source.graph)
    np.testing.assert_allclose(run_onnx(source.native(), x), run_onnx(model, x), 1e-5, 1e-5)
    if left or not bias or bias["c"].shape in ((columns,), (1,), ()):
        (layer,) = source.graph.layers()
        outputs_first = not turned["transA"] if left else turned["transB"]
        effective = weight if outputs_first else weight.T
        np.testing.assert_allclose(layer.weight, factors["alpha"] * effective, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_constant_on_the_left_is_a_layer(shape: tuple[int, ...], kind: str) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(5, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.mix.weight, x)

    torch.manual_seed(0)
    model, x = Left().eval(), torch.randn(shape)
    expected = run_torch(model, x)
    if kind == "torch":
        source, _ = open_folded(model, (x,))
    else:
        node = helper.make_node("MatMul", ["mix.weight", "x"], ["y"], name="left")
        weights = {"mix.weight": model.mix.weight.detach().numpy()}
        source, _ = open_folded(onnx_model([node], list(shape), **weights))
    check_graph(source.graph)
    run: Callable[..., Array] = run_torch if kind == "torch" else run_onnx
    assert_close(run(source.native(), x), expected)
    (layer,) = source.graph.layers()
    assert (layer.name, layer.op) == ("mix", "conv2d")
    np.testing.assert_array_equal(layer.weight[:, :, 0, 0], model.mix.weight.detach().numpy())
    assert layer.macs == 8 * 5 * int(np.prod(shape)) // 5


@pytest.mark.parametrize("factors", [{"alpha": 0.5}, {"beta": 2.0}, {"alpha": -1.0, "beta": 0.25}])
def test_addmm_with_factors_is_a_layer(factors: dict[str, float]) -> None:
    class Addmm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.addmm(self.b, x, self.w, **factors)  # type: ignore[call-overload]
            return y

    torch.manual_seed(0)
    model, x = Addmm().eval(), torch.randn(3, 6)
    source, _ = open_folded(model, (x,))
    check_graph(source.graph)
    assert_close(run_torch(source.native(), x), run_torch(model, x))
    (layer,) = source.graph.layers()
    assert layer.bias is not None and layer.weight.shape == (4, 6)


def test_a_mixer_is_enforced_and_permuted() -> None:
    """Tokens by a constant on the left, channels by one on the right."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.tokens, self.back = nn.Linear(8, 12, bias=False), nn.Linear(12, 8, bias=False)
            self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.back.weight @ (self.tokens.weight @ self.norm(x)).relu() + x
            z: Tensor = self.head((self.fc2(self.fc1(y).relu()) + y).mean(1))
            return z

    torch.manual_seed(0)
    model, x = Mixer().eval(), torch.randn(2, 8, 8)
    source, _ = open_folded(model, (x,))
    found = shake(source.graph)
    assert_close(run_torch(source.native(), x), run_torch(model, x))
    for name in ("back", "fc2"):
        assert not any(found.spaces[s.space].fixed for s in found.inputs[name]), name
    fixed = [found.spaces[s.space].fixed for s in found.inputs["tokens"]]
    assert fixed == ["they are an input of the model"]
    result = EnforcePattern("2:4").call(source.graph)
    assert [row.layer for row in result.layers if row.skipped is None] == [
        "tokens", "back", "fc1", "fc2"
    ]  # fmt: skip
    weights = {layer.name: layer.weight for layer in source.graph.layers()}
    assert all(check(weights[name], NM(2, 4)).ok for name in ("tokens", "back", "fc1", "fc2"))
