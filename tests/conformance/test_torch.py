"""Functions of vision models with drawn arguments: as torch has them, or refused by name."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

import nmcompile
from nmcompile.errors import UnsupportedOperatorError

few = settings(
    max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
many = settings(few, max_examples=60, derandomize=False)


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """What the compiled function returns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nmc"
        nmcompile.compile(Calls(function).eval(), output=path, example_inputs=arguments, **options)
        session = nmcompile.runtime.load(path, threads=1)
    tensors = [a.numpy() for a in arguments if isinstance(a, Tensor)]
    given = dict(zip((spec.name for spec in session.inputs), tensors, strict=True))
    return list(session.run(given).values())


def agrees(function: Callable[..., Any], *arguments: Any) -> None:
    with torch.no_grad():
        wanted = [w for w in pytree.tree_leaves(function(*arguments)) if w is not None]
    found = compiled(function, *arguments)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.numpy().dtype
        peak = float(theirs.abs().nan_to_num(posinf=0).max()) if theirs.numel() else 1
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5 * max(peak, 1e-3))


def agrees_or_refused(function: Callable[..., Any], *arguments: Any) -> None:
    try:
        function(*arguments)
    except Exception:
        return  # arguments that torch itself does not take
    try:
        agrees(function, *arguments)
    except UnsupportedOperatorError as error:
        # In torch's names, or in ONNX's where that was tried for parts in onnxruntime.
        assert re.search(r"[\w.]+ \(node [^)]+\): expected ", str(error))


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


extents = st.integers(1, 12)


@st.composite
def interpolations(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]))
    arguments: dict[str, Any] = {"mode": mode}
    if draw(st.booleans()):
        arguments["size"] = (draw(extents), draw(extents))
    else:
        factor = st.floats(0.4, 3).map(lambda f: round(f, 2))
        arguments["scale_factor"] = (draw(factor), draw(factor))
        arguments["recompute_scale_factor"] = draw(st.sampled_from([None, True]))
    if mode in ("bilinear", "bicubic"):
        arguments["align_corners"] = draw(st.booleans())
        arguments["antialias"] = draw(st.booleans())
    # Antialiasing in torch 2.13 leaves out an axis where the other one has one element.
    size = st.integers(2, 12) if arguments.get("antialias") else extents
    if "size" in arguments:
        arguments["size"] = (draw(size), draw(size))
    return image(1, 2, draw(size) + 3, draw(size) + 3), arguments


@st.composite
def poolings(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    window, pair = draw(st.integers(1, 4)), st.integers(1, 3)
    arguments: dict[str, Any] = {
        "kernel_size": (window, draw(st.integers(1, 4))),
        "stride": (draw(pair), draw(pair)),
        "ceil_mode": draw(st.booleans()),
    }
    arguments["padding"] = tuple(draw(st.integers(0, k // 2)) for k in arguments["kernel_size"])
    return image(1, 3, draw(st.integers(4, 11)), draw(st.integers(4, 11))), arguments


@st.composite
def average_poolings(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    x, arguments = draw(poolings())
    arguments["count_include_pad"] = draw(st.booleans())
    arguments["divisor_override"] = draw(st.sampled_from([None, None, 1, 5]))
    return x, arguments


@st.composite
def max_poolings(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    x, arguments = draw(poolings())
    arguments["dilation"] = draw(st.sampled_from([1, 1, 2]))
    arguments["return_indices"] = draw(st.booleans())
    return x, arguments


@st.composite
def transposed(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    groups, stride, kernel = (draw(st.integers(1, n)) for n in (2, 3, 4))
    arguments = {
        "weight": image(4, 3, kernel, kernel),
        "stride": stride,
        "padding": draw(st.integers(0, kernel - 1)),
        "output_padding": draw(st.integers(0, max(stride - 1, 0))),
        "groups": groups,
        "dilation": draw(st.sampled_from([1, 1, 2])),
    }
    return image(1, 4, draw(st.integers(2, 7)), 5), arguments


@st.composite
def paddings(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    low = -1 if mode == "constant" else 0
    pad = [draw(st.integers(low, 3)) for _ in range(4)]
    return image(1, 2, 5, 6), {"pad": pad, "mode": mode}


@st.composite
def attentions(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    mask = draw(st.sampled_from([None, "bool", "float"]))
    arguments: dict[str, Any] = {"key": image(2, 2, keys, 4), "value": image(2, 2, keys, 6)}
    if mask is not None:
        kept = torch.rand(queries, keys, generator=torch.Generator().manual_seed(keys)) < 0.6
        if draw(st.booleans()):
            kept[0] = False  # a row whose keys are all masked
        bias = torch.zeros(queries, keys).masked_fill(~kept, -torch.inf)
        arguments["attn_mask"] = kept if mask == "bool" else bias
    else:
        arguments["is_causal"] = draw(st.booleans())
    arguments["scale"] = draw(st.sampled_from([None, 0.5]))
    return image(2, 2, queries, 4), arguments


@st.composite
def normalisations(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    x = image(2, 3, 4, 5)
    shape = x.shape[-rank:]
    affine = draw(st.booleans())
    weights = {"weight": image(*shape), "bias": image(*shape)} if affine else {}
    return x, {"normalized_shape": shape, "eps": draw(st.sampled_from([1e-5, 0.1])), **weights}


@st.composite
def adaptive(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    return image(1, 3, draw(extents), draw(extents)), {
        "output_size": (draw(extents), draw(extents))
    }


DRAWN: dict[str, tuple[Callable[..., Any], st.SearchStrategy[tuple[Tensor, dict[str, Any]]]]] = {
    "interpolate": (functional.interpolate, interpolations()),
    "avg_pool2d": (functional.avg_pool2d, average_poolings()),
    "max_pool2d": (functional.max_pool2d, max_poolings()),
    "adaptive_avg_pool2d": (functional.adaptive_avg_pool2d, adaptive()),
    "adaptive_max_pool2d": (functional.adaptive_max_pool2d, adaptive()),
    "conv_transpose2d": (functional.conv_transpose2d, transposed()),
    "pad": (functional.pad, paddings()),
    "scaled_dot_product_attention": (functional.scaled_dot_product_attention, attentions()),
    "layer_norm": (functional.layer_norm, normalisations()),
}


def call(name: str, drawn: tuple[Tensor, dict[str, Any]]) -> None:
    function, (x, arguments) = DRAWN[name][0], drawn
    # A mask, keys and values are inputs; all else is a part of the model.
    tensors = [n for n in ("key", "value", "attn_mask") if isinstance(arguments.get(n), Tensor)]
    fixed = {n: value for n, value in arguments.items() if n not in tensors}

    def forward(data: Tensor, *others: Tensor) -> Any:
        return function(data, **dict(zip(tensors, others, strict=True)), **fixed)

    agrees_or_refused(forward, x, *(arguments[n] for n in tensors))


@pytest.mark.parametrize("name", DRAWN)
def test_a_function_is_right_or_refused(name: str) -> None:
    few(given(DRAWN[name][1])(lambda drawn: call(name, drawn)))()


@pytest.mark.long
@pytest.mark.parametrize("name", DRAWN)
def test_a_function_is_right_or_refused_with_many_arguments(name: str) -> None:
    many(given(DRAWN[name][1])(lambda drawn: call(name, drawn)))()
