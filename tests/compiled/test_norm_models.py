"""Norms, also such as are spelled out: found in one piece, and right against torch."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nmcompile as nmc
from nmcompile import runtime

WIDTH = 20
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, scale and shift


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def deviation(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    return (centred(x).pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def root_mean_square(x: Tensor) -> Tensor:
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


FOUND: dict[str, Norm] = {
    "as ONNX exports it": lambda x, w, b: centred(x) / deviation(x) * w + b,
    "scale before": lambda x, w, b: w * centred(x) / deviation(x) + b,
    "variance": lambda x, w, b: (
        centred(x) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-3) * w + b
    ),
    "inverse": lambda x, w, b: centred(x) * (1 / deviation(x)) + b,
    "two axes": lambda x, w, b: (
        (x - x.mean((-2, -1), keepdim=True))
        / ((x - x.mean((-2, -1), keepdim=True)).square().mean((-2, -1), keepdim=True) + 1e-4).sqrt()
    ),
    "root mean square": lambda x, w, b: w * (x * root_mean_square(x)),
    "root mean square, shifted": lambda x, w, b: b + x * root_mean_square(x) * w,
}
LEFT: dict[str, Norm] = {
    "mean of another axis": lambda x, w, b: (x - x.mean(-2, keepdim=True)) / deviation(x),
    "of another tensor": lambda x, w, b: centred(x * x) / deviation(x) * w,
    "unbiased": lambda x, w, b: centred(x) / (x.var(-1, keepdim=True) + 1e-3).sqrt() * w,
    "times itself": lambda x, w, b: centred(x) * centred(x) * root_mean_square(x),
}


class Norms(nn.Module):
    """Each norm of rows of its own."""

    def __init__(self, norms: dict[str, Norm]) -> None:
        super().__init__()
        self.norms = norms
        self.scale, self.shift = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.first = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        return tuple(
            norm(y * (index + 1), self.scale, self.shift)
            for index, norm in enumerate(self.norms.values())
        )


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("found", [True, False])
def test_norms_spelled_out(found: bool, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    norms = FOUND if found else LEFT
    model, x = Norms(norms).eval(), torch.randn(2, 3, WIDTH)
    source: Path | nn.Module = model
    if kind == "onnx":
        source = tmp_path / "m.onnx"
        torch.onnx.export(model, (x,), source, opset_version=13, dynamo=False)
    example = (x,) if kind == "torch" else None
    nmc.compile(source, output=tmp_path / "m.nmc", example_inputs=example)
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        feeds = {session.inputs[0].name: x.numpy()}
        results = list(session.run(feeds).values())
        symbols = Counter(c.symbol.partition("__")[0] for c in session.profile(feeds))
    assert symbols["layer_norm_f32"] == (len(norms) if found else 0)
    for name, result, expected in zip(norms, results, model.double()(x.double()), strict=True):
        np.testing.assert_allclose(
            result, expected.detach().numpy(), rtol=1e-4, atol=1e-4, err_msg=name
        )


class ChannelNorms(nn.Module):
    """Group norms and instance norms, with activations behind some."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList(
            [
                nn.Sequential(nn.GroupNorm(2, 6), nn.SiLU()),
                nn.GroupNorm(1, 6, eps=1e-3),
                nn.Sequential(nn.InstanceNorm2d(6, affine=True), nn.ReLU()),
                nn.InstanceNorm2d(6),
            ]
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.line = nn.InstanceNorm1d(6, affine=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return (*(norm(y) for norm in self.norms), self.line(y.flatten(2) * 2))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_norms_of_channels(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ChannelNorms().eval(), torch.randn(2, 3, 9, 11)
    source: Path | nn.Module = model
    if kind == "onnx":
        source = tmp_path / "m.onnx"
        torch.onnx.export(model, (x,), source, opset_version=13, dynamo=False)
    nmc.compile(source, output=tmp_path / "m.nmc", example_inputs=(x,) if kind == "torch" else None)
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        feeds = {session.inputs[0].name: x.numpy()}
        results = list(session.run(feeds).values())
        symbols = Counter(c.symbol.partition("__")[0] for c in session.profile(feeds))
    assert symbols["group_norm_f32"] == 5
    assert not any("mean" in name or "silu" in name or "relu" in name for name in symbols)
    for result, expected in zip(results, model.double()(x.double()), strict=True):
        np.testing.assert_allclose(result, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
