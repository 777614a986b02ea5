"""Handwritten digits are recognised as well in integers as in float32."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile.quantization.calibration import Calibration
from nmcompile.quantization.measure import first_output
from nmcompile.sparsity import parse_pattern, project
from tests.support.seed_modules import Array

TRAINED = 900  # images; the others are the test set
LOST = 0.003  # of the accuracy


class Digits(NamedTuple):
    """A trained net, quantised, and the images that it has not seen."""

    model: nn.Module
    quantised: nmcompile.QuantizeResult
    images: Array
    labels: Array
    float_accuracy: float


def load() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.images[order], dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(found.target[order])


@pytest.fixture(scope="module")
def digits() -> Digits:
    images, labels = load()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    pruned = model[3]
    assert isinstance(pruned, nn.Conv2d)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for epoch in range(9):
        for at in range(0, TRAINED, 150):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[at : at + 150]), labels[at : at + 150])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if epoch >= 5:
                weight = project(pruned.weight.detach().numpy(), parse_pattern("2:4"))
                with torch.no_grad():
                    pruned.weight.copy_(torch.from_numpy(weight))
    model.eval()
    test, wanted = images[TRAINED:], labels[TRAINED:]
    with torch.no_grad():
        share = float((model(test).argmax(1) == wanted).float().mean())
    quantised = nmcompile.quantize(model, images[:TRAINED], example_inputs=test[:1])
    return Digits(model, quantised, test.numpy(), wanted.numpy(), share)


def accuracy(logits: Array, digits: Digits) -> float:
    return float((logits.argmax(1) == digits.labels).mean())


def test_integers_recognise_as_many_digits(digits: Digits) -> None:
    assert digits.float_accuracy > 0.95
    name = digits.quantised.model.graph.input[0].name
    samples = Calibration({name: digits.images}, 1)
    logits = first_output(digits.quantised.model, samples, "digits")
    assert accuracy(logits, digits) >= digits.float_accuracy - LOST
    patterns = [layer.pattern for layer in digits.quantised.report.layers]
    assert patterns == ["dense", "2:4", "dense"]


def logits_of(path: Path, digits: Digits) -> Array:
    """Of an artifact, image by image."""
    with nmcompile.runtime.load(path) as session:
        (name,) = (spec.name for spec in session.inputs)
        runs = [
            np.array(next(iter(session.run({name: image[None]}).values())))
            for image in digits.images
        ]
    return np.concatenate(runs)


ON_VECTORS = pytest.param("avx512_vnni", marks=pytest.mark.isa("avx512_vnni"))
ON_TILES = pytest.param("avx512_amx", marks=pytest.mark.isa("amx_int8"))


@pytest.mark.parametrize("target", [ON_VECTORS, ON_TILES])
def test_the_artifact_recognises_as_many_digits(
    target: str, digits: Digits, tmp_path: Path
) -> None:
    path, model = tmp_path / "m.nmc", digits.quantised.model
    nmcompile.compile(model, output=path, target=target)
    name = model.graph.input[0].name
    logits = logits_of(path, digits)
    assert accuracy(logits, digits) >= digits.float_accuracy - LOST
    expected = first_output(model, Calibration({name: digits.images}, 1), "digits")
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.995


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("avx512_bf16", marks=pytest.mark.isa("avx512_bf16")),
        pytest.param("avx512_amx", marks=pytest.mark.isa("amx_bf16")),
    ],
)
def test_bfloat16_recognises_as_many_digits(target: str, digits: Digits, tmp_path: Path) -> None:
    path, example = tmp_path / "m.nmc", torch.from_numpy(digits.images[:1])
    nmcompile.compile(
        digits.model, output=path, target=target, precision="bf16", example_inputs=(example,)
    )
    logits = logits_of(path, digits)
    assert accuracy(logits, digits) >= digits.float_accuracy - LOST
