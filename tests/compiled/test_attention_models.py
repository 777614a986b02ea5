"""Attention as torch and ONNX models spell it: found, and right against their frameworks."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

import nmcompile as nmc
from nmcompile import runtime
from tests.support.peer import by_peer

Function = Callable[..., torch.Tensor]
KERNEL = "attention_f32__avx512"


class Block(nn.Module):
    """A block of a vision transformer (Dosovitskiy et al., arXiv 2010.11929), as timm has it."""

    def __init__(self, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        result: torch.Tensor = x + self.mlp(self.norm2(x))
        return result


class WindowBlock(nn.Module):
    """Windows with a bias for relative positions and shifted masks (Liu et al., Swin)."""

    mask: torch.Tensor

    def __init__(self, width: int = 32, heads: int = 2, windows: int = 4, tokens: int = 9) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens))
        mask = torch.where(torch.rand(windows, tokens, tokens) < 0.3, -100.0, 0.0)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.bias[None]
        windows = self.mask.shape[0]
        apart = scores.view(count // windows, windows, self.heads, tokens, tokens)
        scores = (apart + self.mask[None, :, None]).view(-1, self.heads, tokens, tokens)
        weights = scores.softmax(-1)
        result: torch.Tensor = (weights @ v).transpose(1, 2).reshape(count, tokens, width)
        return result


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.function(*given)


class Cross(nn.Module):
    """torch's own module, with keys and values from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(48, 3, batch_first=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x, y, y, need_weights=False)[0]
        return result


def heads(queries: int = 20, keys: int = 20) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 3, count, 16) for count in (queries, keys, keys))


def manual(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def cached(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As transformers writes it: a cache that begins empty, softmax in float32."""
    k, v = (torch.cat([torch.empty(0), x], -2) for x in (k, v))
    weights = (q @ k.transpose(-2, -1) * 0.25).softmax(-1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


SDPA = functional.scaled_dot_product_attention
MODELS: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "block": (Block(), (torch.randn(1, 50, 48),)),
    "block of a batch": (Block(), (torch.randn(3, 17, 48),)),
    "windows": (WindowBlock(), (torch.randn(4, 9, 32),)),
    "cross": (Cross(), (torch.randn(2, 20, 48), torch.randn(2, 30, 48))),
    "plain": (Of(SDPA), heads(20, 33)),
    "causal": (Of(lambda q, k, v: SDPA(q, k, v, is_causal=True)), heads()),
    "added": (Of(lambda q, k, v, m: SDPA(q, k, v, m)), (*heads(), torch.randn(2, 1, 20, 20))),
    "scaled": (Of(lambda q, k, v: SDPA(q, k, v, scale=0.3)), heads()),
    "three axes": (
        Of(lambda q, k, v: torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.25).softmax(-1), v)),
        tuple(torch.randn(6, 20, 16) for _ in range(3)),
    ),
    "divided": (Of(manual), heads()),
    "cached": (Of(cached), heads()),
    "grouped": (
        Of(lambda q, k, v: SDPA(q, k, v, enable_gqa=True)),
        (torch.randn(2, 6, 20, 16), *heads()[1:]),
    ),
    "einsum": (
        Of(
            lambda q, k, v: torch.einsum(
                "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q * 0.25, k).softmax(-1), v
            )
        ),
        heads(),
    ),
}


def run(path: Path, given: tuple[torch.Tensor, ...]) -> tuple[list[str], list[np.ndarray]]:
    """The kernels of an artifact, and what it makes of some inputs."""
    with runtime.load(path, threads=1) as session:
        feeds = {
            spec.name: tensor.numpy() for spec, tensor in zip(session.inputs, given, strict=True)
        }
        found = list(session.run(feeds).values())
        return [call.symbol.partition("__")[0] for call in session.profile(feeds)], found


class Several(nn.Module):
    """Models side by side, each with inputs of its own, to be compiled at once."""

    def __init__(self, models: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.models, self.counts = nn.ModuleList(models), counts

    def forward(self, *given: torch.Tensor) -> list[torch.Tensor]:
        rest = iter(given)
        return [
            model(*itertools.islice(rest, count))
            for model, count in zip(self.models, self.counts, strict=True)
        ]


def test_torch_models_run_in_one_kernel_each(tmp_path: Path) -> None:
    models, inputs = zip(*MODELS.values(), strict=True)
    model = Several(models, [len(given) for given in inputs]).eval()
    given = tuple(itertools.chain.from_iterable(inputs))
    nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=given)
    symbols, found = run(tmp_path / "m.nmc", given)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(*(x.double() for x in given))
    assert symbols.count("attention_f32") == len(MODELS)
    assert not any(name in symbol for symbol in symbols for name in ("softmax", "matmul"))
    for name, ours, theirs in zip(MODELS, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("fill", ["sdpa", "-inf", "-1e9"])
def test_masks_of_truth_values(fill: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    q, k, v = heads()
    mask = torch.rand(2, 1, 20, 20) < 0.5
    mask[0, 0, 3] = False  # sees nothing

    def function(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        if fill == "sdpa":
            return SDPA(q, k, v, mask)
        return (q @ k.mT / 4).masked_fill(mask.logical_not(), float(fill)).softmax(-1) @ v

    model = Of(function)
    nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=(q, k, v, mask))
    symbols, (found,) = run(tmp_path / "m.nmc", (q, k, v, mask))
    expected = function(q.double(), k.double(), v.double(), mask).numpy()
    assert "attention_f32" in symbols
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    assert np.isnan(found[0, 0, 3]).all() == (fill == "-inf")


def test_constant_masks_are_not_computed_anew(tmp_path: Path) -> None:
    class Causal(nn.Module):
        hidden: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("hidden", torch.ones(20, 20, dtype=torch.bool).triu(1))

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return (q @ k.mT / 4).masked_fill(self.hidden, -math.inf).softmax(-1) @ v

    given = heads()
    nmc.compile(Causal(), output=tmp_path / "m.nmc", example_inputs=given)
    symbols, (found,) = run(tmp_path / "m.nmc", given)
    expected = Causal()(*(x.double() for x in given)).numpy()
    assert symbols == ["attention_f32"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_weights_that_are_asked_for_are_computed(tmp_path: Path) -> None:
    class Both(nn.Module):
        def forward(
            self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            weights = (q @ k.mT / 4).softmax(-1)
            return weights @ v, weights

    given = heads()
    nmc.compile(Both(), output=tmp_path / "m.nmc", example_inputs=given)
    symbols, found = run(tmp_path / "m.nmc", given)
    assert "attention_f32" not in symbols and "softmax_f32" in symbols
    for one, expected in zip(found, Both()(*given), strict=True):
        np.testing.assert_allclose(one, expected.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("gather", [True, False])
def test_onnx_spellings_run_in_one_kernel(batch: int, gather: bool, tmp_path: Path) -> None:
    """The fused qkv of timm's exports: taken apart by Gather or Split."""
    tokens, count, size = 19, 2, 16
    node = helper.make_node
    constants = {
        "five": np.array([batch, tokens, 3, count, size]), "scale": np.float32(0.25),
        "three": np.array([batch, tokens, count * size]), "axes": np.array([0]),
        **{f"i{place}": np.array(place) for place in range(3)},
    }  # fmt: skip
    apart = (
        [node("Gather", ["t", f"i{place}"], [name], axis=0) for place, name in enumerate("qkv")]
        if gather
        else [
            node("Split", ["t"], ["q5", "k5", "v5"], axis=0),
            *(node("Squeeze", [f"{name}5", "axes"], [name]) for name in "qkv"),
        ]
    )
    nodes = [
        node("Reshape", ["x", "five"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
        *apart, node("Mul", ["q", "scale"], ["qs"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["qs", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "three"], ["y"]),
    ]  # fmt: skip
    shapes = ([batch, tokens, 3 * count * size], [batch, tokens, count * size])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("xy", shapes, strict=True)
    ]
    arrays = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    nmc.compile(tmp_path / "m.onnx", output=tmp_path / "m.nmc")
    x = np.random.default_rng(0).standard_normal(shapes[0]).astype(np.float32)
    symbols, (found,) = run(tmp_path / "m.nmc", (torch.from_numpy(x),))
    assert symbols == ["attention_f32"]
    (wanted,) = by_peer(tmp_path / "m.onnx", {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_zeros_for_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """As torch's ONNX exporter writes attention with a mask."""
    shape, node = [2, 3, 20, 16], helper.make_node
    nodes = [
        node("MatMul", ["q", "k"], ["s"]), node("Add", ["s", "mask"], ["m"]),
        node("Softmax", ["m"], ["p"], axis=-1), node("IsNaN", ["p"], ["n"]),
        node("Where", ["n", "zero", "p"], ["w"]), node("MatMul", ["w", "v"], ["y"]),
    ]  # fmt: skip
    mask = np.where(np.random.default_rng(1).random((20, 20)) < 0.5, -np.inf, 0.0)
    mask[3] = -np.inf  # sees nothing
    arrays = {"mask": mask.astype(np.float32), "zero": np.float32(0)}
    shapes = {"q": shape, "k": [2, 3, 16, 20], "v": shape, "y": shape}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:3], ends[3:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    nmc.compile(tmp_path / "m.onnx", output=tmp_path / "m.nmc")
    random = np.random.default_rng(0)
    given = {name: random.standard_normal(shapes[name]).astype(np.float32) for name in "qkv"}
    symbols, (found,) = run(tmp_path / "m.nmc", tuple(map(torch.from_numpy, given.values())))
    assert symbols == ["attention_f32"]
    (wanted,) = by_peer(tmp_path / "m.onnx", given)
    assert not wanted[:, :, 3].any()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
