"""Whole models against the frameworks they come from, to 1e-4 of the output range.

The bench models are ours; the architectures of `transformers` were written by others, and are made
small here. Each goes in from torch, checked against torch, and from ONNX, checked against
onnxruntime: one of the two in every run of the tests for most of them, both in the long one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import Tensor, nn

import nmcompile
from benchmarks.models import build, scramble, sparsify
from benchmarks.zoo.borrowed import OneOutput
from nmcompile import runtime
from tests.support.peer import by_peer
from tests.support.seed_modules import assert_close, export_onnx, run_torch

TOLERANCE = 1e-4

SMALL = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 10}


def _efficientnet() -> nn.Module:
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 6, 6],
        hidden_dim=1280,
        num_labels=10,
    )
    model: nn.Module = transformers.EfficientNetForImageClassification(config)
    return model


def _hgnet() -> nn.Module:
    config = transformers.HGNetV2Config(
        hidden_sizes=[32, 48, 64, 96],
        stem_channels=[3, 16, 24],
        stage_in_channels=[24, 32, 48, 64],
        stage_mid_channels=[16, 16, 32, 32],
        stage_out_channels=[32, 48, 64, 96],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        num_labels=10,
    )
    model: nn.Module = transformers.HGNetV2ForImageClassification(config)
    return model


def _levit() -> nn.Module:
    config = transformers.LevitConfig(
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[16, 16, 16],
        num_labels=10,
    )
    model: nn.Module = transformers.LevitForImageClassification(config)
    return model


def _segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        **SMALL, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32
    )
    model: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return model


def _superpoint() -> nn.Module:
    from transformers.models.superpoint.modeling_superpoint import SuperPointEncoder

    return SuperPointEncoder(transformers.SuperPointConfig())  # type: ignore[no-any-return]


def _classifier(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        # Looked up late: the first look imports the model.
        config = getattr(transformers, f"{name}Config")
        model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config(**options))
        return model

    return make


# Every one with the pattern of its convolutions and the shape of its input.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "ResNet": (
        _classifier("ResNet", **SMALL | {"embedding_size": 16, "hidden_sizes": [64] * 4}),
        "1x16@0.5",
        (1, 3, 65, 47),
    ),
    "RegNet": (
        _classifier("RegNet", **SMALL, embedding_size=16, groups_width=16),
        "dense",
        (1, 3, 47, 65),
    ),
    "MobileNetV1": (
        _classifier("MobileNetV1", depth_multiplier=0.5, num_labels=10),
        "1x16@0.5",
        (1, 3, 64, 64),
    ),
    "EfficientNet": (_efficientnet, "1x8@0.5", (1, 3, 64, 64)),
    "ConvNeXT": (_classifier("ConvNext", **SMALL), "2:4", (1, 3, 65, 47)),
    "LeViT": (_levit, "2:4", (1, 3, 64, 64)),
    "BiT": (  # its convolutions standardise their weights, which leaves no zeros
        _classifier(
            "Bit", embedding_size=16, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], num_groups=8
        ),
        "dense",
        (1, 3, 64, 64),
    ),
    "HGNetV2": (_hgnet, "unstructured@0.2", (1, 3, 64, 64)),
    "SegFormer": (_segformer, "dense", (1, 3, 64, 64)),
    "SuperPoint": (_superpoint, "1x16@0.5", (1, 1, 48, 40)),
}


def image(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run_onnx(proto: onnx.ModelProto, x: Tensor) -> Any:
    # Its group norm fusion is off by 2e-4 of float64's output range on BiT.
    return by_peer(proto, {"x": x.numpy()}, as_defined=True)[0]


def assert_agrees(model: nn.Module, x: Tensor, source: str, output: Path, sparse: bool) -> None:
    """Compile from torch or ONNX, run, and compare with the framework's own result."""
    if source == "torch":
        result = nmcompile.compile(model, output=output, example_inputs=(x,))
        expected = run_torch(model, x)
    else:
        proto = export_onnx(model, x)
        result = nmcompile.compile(proto, output=output)
        expected = run_onnx(proto, x)
    found = next(iter(runtime.load(output).run(x).values()))
    # A constant output would agree with anything.
    assert np.ptp(expected) > 1e-2
    assert_close(found, expected, TOLERANCE)
    assert any(layer.sparse for layer in result.report.layers) == sparse


# What they are made of is in others too, or in models of the zoo.
LONG = {"RegNet", "MobileNetV1", "SuperPoint"}


def sources() -> Iterator[Any]:
    """Every architecture from torch and from ONNX, taking turns which of them is long."""
    long = pytest.mark.long
    for index, name in enumerate(ARCHITECTURES):
        first, second = ("torch", "onnx") if index % 2 else ("onnx", "torch")
        yield pytest.param(name, first, id=f"{name}-{first}", marks=[long] * (name in LONG))
        yield pytest.param(name, second, id=f"{name}-{second}", marks=long)


@pytest.mark.parametrize(("name", "source"), list(sources()))
def test_architecture_of_others_agrees(name: str, source: str, tmp_path: Path) -> None:
    make, pattern, shape = ARCHITECTURES[name]
    model = sparsify(scramble(OneOutput(make())), pattern)
    assert_agrees(model, image(shape), source, tmp_path / "model.nmc", pattern != "dense")


@pytest.mark.parametrize(
    ("name", "pattern", "source", "shape"),
    [
        ("mobilenet_v2", "2:4", "torch", (2, 3, 64, 64)),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("resnet18", "1x16@0.5", "onnx", (2, 3, 64, 64)),
                ("mobilenet_v1", "1x16@0.25", "torch", (1, 3, 64, 64)),
                ("resnet18", "2:4", "torch", (1, 3, 65, 47)),
                ("resnet50", "1x16@0.5", "torch", (1, 3, 64, 64)),
                ("resnet50", "1:4", "onnx", (1, 3, 47, 65)),
                ("mobilenet_v1", "2:4", "onnx", (1, 3, 47, 65)),
                ("mobilenet_v2", "dense", "onnx", (1, 3, 65, 65)),
            )
        ),
    ],
)
def test_bench_model_agrees(
    name: str, pattern: str, source: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = build(name, pattern)
    assert_agrees(model, image(shape), source, tmp_path / "model.nmc", pattern != "dense")
