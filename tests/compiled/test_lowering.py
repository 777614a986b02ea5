"""What the Relax lowering fuses into our kernels, from torch and from ONNX."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile import runtime
from nmcompile.frontends import open_model
from nmcompile.kernels.spec import Linear
from nmcompile.passes.lowering.fallback import lower_fallback
from nmcompile.passes.lowering.kernels import lower_kernels
from nmcompile.passes.lowering.matching.match import Group, Matcher
from nmcompile.passes.lowering.simplify import simplify
from nmcompile.passes.lowering.view import FunctionView, constant
from nmcompile.passes.pipeline import run_pipeline
from tests.support.examples import crossed
from tests.support.seed_modules import export_onnx

ACTIVATIONS: dict[str, tuple[nn.Module, str]] = {
    "relu": (nn.ReLU(), "relu"),
    "relu6": (nn.ReLU6(), "clip(0,6)"),
    "hardtanh": (nn.Hardtanh(-2.0, 3.0), "clip(-2,3)"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "silu": (nn.SiLU(), "silu"),
    "hardswish": (nn.Hardswish(), "hard_swish"),
    "hardsigmoid": (nn.Hardsigmoid(), "hard_sigmoid"),
    "gelu": (nn.GELU(), "gelu"),
    "gelu with a tangent": (nn.GELU(approximate="tanh"), "gelu_tanh"),
}


class ResidualBlock(nn.Module):
    """relu(conv(conv(x)) + x)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + x)


class Sums(nn.Module):
    """conv(y) + y for y = make(conv(x)), then what else reads y."""

    def __init__(
        self,
        make: Callable[[Tensor], Tensor] = functional.relu,
        after: Callable[[Tensor, Tensor], Any] = lambda y, out: out,
        before: Callable[[Tensor], Tensor] = lambda y: y,
    ) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.make, self.after, self.before = make, after, before

    def forward(self, x: Tensor) -> Any:
        y = self.make(self.stem(x))
        return self.after(y, functional.relu(self.outer(self.inner(self.before(y))) + y))


SUMS: dict[str, tuple[nn.Module, bool]] = {
    "nothing else": (Sums(), True),
    "one more user before": (Sums(before=lambda y: functional.max_pool2d(y, 1)), True),
    "no kernel makes it": (Sums(make=torch.tanh), False),
    "no kernel reads it": (Sums(before=torch.tanh), False),
    "a view of it": (Sums(before=lambda y: y.reshape(1, 8, 16, 9)
                          .mean((2, 3), keepdim=True).expand(1, 8, 12, 12)), False),
    "read afterwards": (Sums(after=lambda y, out: functional.max_pool2d(y, 2)
                             + functional.max_pool2d(out, 2)), False),
    "returned": (Sums(after=lambda y, out: (y, out)), False),
    "a model input": (ResidualBlock(), False),
}  # fmt: skip


class SharedValue(nn.Module):
    """The convolution's output is read twice, so nothing may be fused behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return functional.relu(y) * functional.tanh(y)


class PaddedConv(nn.Module):
    """An explicit, asymmetric zero padding in front of a convolution without its own."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.conv, self.value = nn.Conv2d(8, 8, 3, stride=2), value

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 1, 2, 1), value=self.value)
        out: Tensor = self.conv(padded)
        return out


def match(model: nn.Module, kind: str) -> tuple[list[Group], list[str]]:
    """The groups that the matcher finds in a model, and the operators it leaves."""
    x = torch.randn(1, 8, 12, 12)
    source: Any = model.eval() if kind == "torch" else export_onnx(model.eval(), x)
    opened = open_model(source, example_inputs=(x,) if kind == "torch" else None)
    run_pipeline(opened.graph)
    function = simplify(opened.to_relax())["main"]
    matcher = Matcher(function)
    return matcher.groups, matcher.leftovers()


def test_what_importers_write_for_indices_is_computed_without_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A negative index becomes a constant, and TVM builds no function for what it is made of."""
    nodes = [
        helper.make_node("Gather", ["x", "last"], ["a"], axis=1),
        helper.make_node("Gather", ["x", "both"], ["b"], axis=1),
        helper.make_node("Clip", ["a", "low", "high"], ["c"]),
    ]
    arrays: dict[str, Any] = {
        "last": np.array(-2, np.int64), "both": np.array([[0, -1]], np.int64),
        "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "bc"],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    opened = open_model(helper.make_model(graph, opset_imports=opset, ir_version=9))
    module = opened.to_relax()

    def build(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("TVM compiles what it folds")

    monkeypatch.setattr(importlib.import_module("tvm.tirx.build"), "tir_to_runtime", build)
    view = FunctionView(simplify(module)["main"])
    taken = [view.args(var)[1] for var in view.definitions if view.op(var) == "take"]
    held = [constant(index) for index in taken]
    assert [None if each is None else each.tolist() for each in held] == [3, [[0, 4]]]


TANGENT = math.sqrt(2 / math.pi)
GELUS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "power": (
        lambda x: 0.5 * x * (1 + torch.tanh(TANGENT * (x + 0.044715 * torch.pow(x, 3)))),
        "gelu_tanh",
    ),
    "square": (
        lambda x: 0.5 * x * (1 + torch.tanh(x * 0.79788456 * (1 + 0.044715 * x * x))),
        "gelu_tanh",
    ),
    "half of x": (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "half of the gate": (lambda x: x * (0.5 * (1 + torch.erf(x / math.sqrt(2)))), "gelu"),
    "gate in one": (lambda x: x * (0.5 + 0.5 * torch.erf(x * math.sqrt(0.5))), "gelu"),
    "other factor": (lambda x: 0.5 * x * (1 + torch.tanh(TANGENT * (x + 0.05 * x**3))), ""),
    "other gate": (lambda x: x * (0.5 + torch.erf(x * math.sqrt(0.5))), ""),
}


class Gelu(nn.Module):
    """A function behind a convolution, or behind its transposition."""

    def __init__(self, function: Callable[[Tensor], Tensor], apart: bool) -> None:
        super().__init__()
        self.conv, self.function, self.apart = nn.Conv2d(8, 8, 1), function, apart

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.function(y.permute(0, 2, 3, 1)).sum(3) if self.apart else self.function(y)


@pytest.mark.parametrize(("name", "kind"), crossed(list(GELUS), ["torch", "onnx"]))
def test_gelu_is_found_however_it_is_spelled_out(name: str, kind: str) -> None:
    function, expected = GELUS[name]
    (group,), leftovers = match(Gelu(function, apart=False), kind)
    assert str(group.activation) == (expected or "none")
    assert bool(leftovers) == (not expected)
    groups, leftovers = match(Gelu(function, apart=True), kind)
    activations = [str(group.activation) for group in groups if group.op == "activation"]
    assert activations == ([expected] if expected else [])
    assert bool(expected) == (leftovers == ["permute_dims", "sum"])


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_two_gelus_of_one_value_are_both_found(kind: str) -> None:
    def both(x: Tensor) -> Tensor:
        return torch.cat([GELUS[name][0](x) for name in ("gate in one", "power")], 1)

    groups, leftovers = match(Gelu(both, apart=False), kind)
    activations = [str(group.activation) for group in groups if group.op == "activation"]
    assert sorted(activations) == ["gelu", "gelu_tanh"]
    assert leftovers == ["concat"]


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_positions_along_channels_have_a_kernel(kind: str) -> None:
    def positions(x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True) + x.argmin(1, keepdim=True) * x.argmax(3, keepdim=True)

    groups, leftovers = match(Gelu(positions, apart=False), kind)
    assert [group.op for group in groups] == ["conv2d", "positions", "positions"]
    assert sorted(leftovers) == ["add", "argmax", "multiply"]


class Parts(nn.Module):
    """Attention of the three parts of a product, the last of which may be read elsewhere too."""

    def __init__(self, elsewhere: bool) -> None:
        super().__init__()
        self.linear, self.elsewhere = nn.Linear(12, 3 * 12), elsewhere

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.linear(x).chunk(3, -1)
        out: Tensor = (q @ k.transpose(-2, -1) / math.sqrt(12)).softmax(-1) @ v
        return out + torch.tanh(v) if self.elsewhere else out


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_split_is_left_only_where_a_part_is_read(elsewhere: bool, kind: str) -> None:
    groups, leftovers = match(Parts(elsewhere), kind)
    assert [group.op for group in groups] == ["linear", "attention"]
    assert any(name in leftovers for name in ("split", "strided_slice")) == elsewhere


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_fused_however_it_is_spelled(name: str, kind: str) -> None:
    module, expected = ACTIVATIONS[name]
    groups, leftovers = match(nn.Sequential(nn.Conv2d(8, 8, 3), module), kind)
    assert [str(group.activation) for group in groups] == [expected]
    assert leftovers == []


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_residual_and_activation_are_fused(kind: str) -> None:
    groups, leftovers = match(ResidualBlock(), kind)
    assert [group.residual is not None for group in groups] == [False, True]
    assert groups[1].activation.kind == "relu"
    assert leftovers == []


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("case", SUMS)
def test_output_takes_the_memory_of_a_residual_that_nothing_reads_again(
    case: str, tmp_path: Path
) -> None:
    model, overwritten = SUMS[case]
    groups, _ = match(model, "torch")
    assert [g.overwrites for g in groups if g.residual is not None] == [overwritten]
    x = torch.randn(1, 8, 12, 12)
    path = nmcompile.compile(model, output=tmp_path / "sum.nmc", example_inputs=(x,)).path
    with torch.no_grad():
        expected = model(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    with runtime.load(path) as session:
        for _ in range(3):  # memory of earlier runs is used again
            for found, y in zip(session.run(x.numpy()).values(), expected, strict=True):
                torch.testing.assert_close(torch.from_numpy(found), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_value_with_two_users_is_not_absorbed(kind: str) -> None:
    groups, leftovers = match(SharedValue(), kind)
    assert groups[0].activation.kind == "none"
    assert len(leftovers) == 3


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_zero_padding_becomes_part_of_the_convolution(kind: str) -> None:
    groups, leftovers = match(PaddedConv(), kind)
    assert [group.spec.padding for group in groups] == [(2, 0, 1, 1)]  # type: ignore[union-attr]
    assert leftovers == []


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_padding_with_another_value_stays(kind: str) -> None:
    groups, leftovers = match(PaddedConv(1.0), kind)
    assert [group.spec.padding for group in groups] == [(0, 0, 0, 0)]  # type: ignore[union-attr]
    assert len(leftovers) == 1


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_classifier_takes_its_bias(kind: str) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    groups, leftovers = match(model, kind)
    assert [group.op for group in groups] == ["global_average", "linear"]
    assert groups[1].bias is not None
    assert leftovers == ["reshape"]


class Perceptron(nn.Module):
    """x + b(gelu(a(x))), over the last of any number of dimensions."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.again = nn.Linear(12, 24), nn.Linear(24, 12), again

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.gelu(self.a(x))
        y: Tensor = x + self.b(inner)
        return y + inner.mean() if self.again else y


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_products_over_many_dimensions_take_what_is_behind_them(kind: str) -> None:
    groups, leftovers = match(Perceptron(), kind)
    assert [group.spec for group in groups] == [
        Linear((1, 8, 12), 12, 24),
        Linear((1, 8, 12), 24, 12),
    ]
    assert [str(group.activation) for group in groups] == ["gelu", "none"]
    assert [group.residual is not None for group in groups] == [False, True]
    assert all(group.bias is not None for group in groups)
    assert leftovers == []


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("again", [False, True])
def test_products_over_many_dimensions_agree_with_torch(
    again: bool, kind: str, tmp_path: Path
) -> None:
    model, x = Perceptron(again=again).eval(), torch.randn(2, 9, 12)
    source: Any = model if kind == "torch" else export_onnx(model, x)
    made = nmcompile.compile(
        source, output=tmp_path / "m.nmc", example_inputs=(x,) if kind == "torch" else None
    )
    (found,) = runtime.load(made.path, threads=1).run(x.numpy()).values()
    with torch.no_grad():
        assert abs(found - model(x).numpy()).max() < 1e-5


class Leftover(nn.Module):
    """Nothing that a kernel of ours computes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * x - x.amax(1, keepdim=True)


def test_what_is_left_runs_on_all_threads() -> None:
    x = torch.randn(1, 16, 32, 32)
    opened = open_model(Leftover().eval(), example_inputs=(x,))
    lowered = lower_kernels(simplify(opened.to_relax()), "avx512")
    assert lowered.calls == []
    assert set(lowered.leftovers) == {"tanh", "multiply", "max", "subtract"}
    script = lower_fallback(lowered.module).script(show_meta=False)
    functions = script.split("@T.prim_func")[1:]
    assert functions and all("T.parallel" in function for function in functions)
