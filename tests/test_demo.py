"""The demo's training code against the papers' definitions, and the demo's promise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nmcompile
from benchmarks.training import BlockConv, SpReConv, digits_net, nm_mask, spatial_mask, train
from nmcompile import runtime
from nmcompile.sparsity import NM, OneByN, check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nm_mask_keeps_the_largest_of_every_group() -> None:
    weight = torch.randn(8, 8, 3, 3, generator=generator())
    masked = weight * nm_mask(weight, 2, 4)
    assert check(masked.numpy(), NM(2, 4)).ok
    kept = masked.reshape(8, 2, 4, 9).abs().sum(2)
    largest = weight.reshape(8, 2, 4, 9).abs().topk(2, dim=2).values.sum(2)
    assert torch.allclose(kept, largest)


def test_spatial_mask_marks_the_positions_that_unstructured_pruning_favours() -> None:
    weight = torch.randn(16, 16, 3, 3, generator=generator())
    weight[:, :, 1, :] *= 4
    assert spatial_mask(weight, 0.5).tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_finished_blocks_are_uniform_one_by_n() -> None:
    layer = BlockConv(32, 64)
    layer.update(1.0, generator())
    assert check((layer.conv.weight * layer.mask).detach().numpy(), OneByN(16)).ok
    kept = layer.mask[:, :, 0, 0].reshape(4, 16, 32)[:, 0].sum(1)
    assert kept.tolist() == [16.0] * 4


def test_unfinished_blocks_regrow() -> None:
    layer = BlockConv(32, 64)
    layer.update(0.5, generator())
    # Of 16 pruned blocks an eighth comes back.
    assert layer.mask[:, :, 0, 0].sum(1).tolist() == [18.0] * 64


@pytest.mark.parametrize("conv", [SpReConv, BlockConv])
def test_trained_model_predicts_the_same_when_compiled(
    conv: Callable[[int, int, int], nn.Module], tmp_path: Path
) -> None:
    images = torch.randn(128, 1, 16, 16, generator=generator())
    labels = torch.randint(10, (128,), generator=generator())
    torch.manual_seed(0)
    model = train(digits_net(conv), images, labels, epochs=2)
    with torch.no_grad():
        expected = model(images[:16]).numpy()
    output = tmp_path / "digits.nmc"
    result = nmcompile.compile(model, output=output, example_inputs=(images[:16],))
    found = runtime.load(output).run(images[:16])["output"]
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    pruned = [layer for layer in result.report.layers if layer.density < 0.6]
    assert len(pruned) == 3
    assert all(layer.sparse or "Winograd" in layer.reason for layer in pruned)
