"""Masks of `nmcompile.train` against `nmcompile.sparsity.project`, which is numpy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nmcompile.sparsity import NM, OneByN, Unstructured, project
from nmcompile.sparsity.pattern import Axis
from nmcompile.train.masks import (
    as_blocks,
    lines_of,
    magnitude_mask,
    nm_mask,
    spatial_mask,
    spread_blocks,
    unlines,
)
from tests.support.examples import examples


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """OI, OIK or OIHW with many equal magnitudes."""
    window = draw(st.sampled_from([(), (3,), (1, 1), (3, 3), (2, 5)]))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), *window)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(-4, 5, shape, generator=generator).float()


@examples(100)
@given(weight=weights(), m=st.integers(1, 16), data=st.data())
def test_nm_mask_keeps_what_projection_keeps(weight: Tensor, m: int, data: st.DataObject) -> None:
    axis: Axis = data.draw(st.sampled_from(["ic", "flat", "ohwi"]))
    pattern = NM(data.draw(st.integers(1, m)), m, axis)
    expected = project(weight.numpy(), pattern)
    np.testing.assert_array_equal((weight * nm_mask(weight, pattern)).numpy(), expected)
    assert torch.equal(unlines(lines_of(weight, pattern), weight, pattern), weight)


@examples(100)
@given(weight=weights(), density=st.floats(0, 1))
def test_magnitude_mask_keeps_as_many_as_projection(weight: Tensor, density: float) -> None:
    mask = magnitude_mask(weight, density)
    expected = project(weight.numpy(), Unstructured(), density)
    np.testing.assert_array_equal((weight * mask).numpy(), expected)


def test_blocks_are_output_groups_of_single_input_channels() -> None:
    weight = torch.randn(6, 4, 3, 3)
    blocks = as_blocks(weight, 3)
    assert torch.equal(blocks[1, 2], weight[3:6, 2].flatten())
    keep = torch.zeros(2, 4, dtype=torch.bool)
    keep[0, 1] = keep[1, 3] = True
    masked = weight * spread_blocks(keep, weight)
    rest = masked.clone()
    rest[:3, 1] = rest[3:, 3] = 0
    assert not rest.any()
    assert torch.equal(masked[3:, 3], weight[3:, 3])
    result = project(weight.numpy(), OneByN(3), 0.5)
    best = as_blocks(weight, 3).abs().sum(2).topk(2, dim=1).indices
    chosen = torch.zeros(2, 4, dtype=torch.bool).scatter_(1, best, True)
    np.testing.assert_array_equal((weight * spread_blocks(chosen, weight)).numpy(), result)


def test_spatial_mask_marks_the_positions_that_unstructured_pruning_leaves_denser() -> None:
    weight = torch.full((8, 8, 3, 3), 0.1)
    weight[:, :, 1] = 1.0  # the middle row
    weight[0, 0, 0, 0] = 2.0
    assert spatial_mask(weight, 1 / 3).tolist() == [[False] * 3, [True] * 3, [False] * 3]
