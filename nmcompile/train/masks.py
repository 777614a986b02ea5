"""Which weights are kept, as boolean torch masks: the choices of `nmcompile.sparsity.project`.

Weights are OIHW, OIK or OI; every mask has the shape of its weight unless it says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmcompile.sparsity import NM


def lines_of(weight: Tensor, pattern: NM) -> Tensor:
    """The weight in the order of its N:M groups, which start at the start of a line.

    Returns:
        (out, in x window) with the input channel innermost for axis "ic", (1, size) for "flat"
        and, with the input channel innermost, for "ohwi".
    """
    if pattern.axis == "flat":
        return weight.reshape(1, -1)
    return weight.movedim(1, -1).reshape(1 if pattern.axis == "ohwi" else weight.shape[0], -1)


def unlines(lines: Tensor, like: Tensor, pattern: NM) -> Tensor:
    """The inverse of `lines_of` for a weight of the shape of `like`."""
    if pattern.axis == "flat":
        return lines.reshape(like.shape)
    shape = (like.shape[0], *like.shape[2:], like.shape[1])
    return lines.reshape(shape).movedim(-1, 1)


@torch.no_grad()
def nm_mask(weight: Tensor, pattern: NM) -> Tensor:
    """The n largest magnitudes of every m; of equal ones the first."""
    lines = lines_of(weight.abs(), pattern)
    length = lines.shape[1]
    # -1 lies below every magnitude: padding never takes a place from a weight.
    padded = torch.nn.functional.pad(lines, (0, -length % pattern.m), value=-1.0)
    groups = padded.reshape(-1, pattern.m).t().contiguous()
    # Count how many come before each; torch's ONNX exporters know no stable sort.
    before = torch.zeros_like(groups, dtype=torch.int8)
    for place, other in enumerate(groups):
        ahead = torch.cat([other > groups[: place + 1], other >= groups[place + 1 :]])
        before = before + ahead.to(torch.int8)
    keep = (before < pattern.n).t().reshape(padded.shape)[:, :length]
    return unlines(keep, weight, pattern)


@torch.no_grad()
def magnitude_mask(weight: Tensor, density: float) -> Tensor:
    """The round(density x size) largest magnitudes of the whole weight; of equal ones the first."""
    order = weight.abs().flatten().argsort(descending=True, stable=True)
    keep = torch.zeros_like(order, dtype=torch.bool)
    keep[order[: round(density * order.numel())]] = True
    return keep.reshape(weight.shape)


def as_blocks(weight: Tensor, n: int) -> Tensor:
    """The weight cut into 1xN blocks: (out / n, in, n x window); `n` divides the outputs."""
    windows = weight.reshape(weight.shape[0] // n, n, weight.shape[1], -1)
    return windows.movedim(1, 2).flatten(2)


def spread_blocks(keep: Tensor, weight: Tensor) -> Tensor:
    """A mask (out / n, in) of blocks as a mask of single weights."""
    rows = keep.repeat_interleave(weight.shape[0] // keep.shape[0], 0)
    return rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2)).expand_as(weight)


@torch.no_grad()
def spatial_mask(weight: Tensor, density: float) -> Tensor:
    """SpRe's S, shape (kh, kw): where unstructured pruning would keep more than the average.

    Source: Zhang et al., TPAMI 2025, section 3.

    Args:
        weight: OIHW, not masked.
        density: share of the weights that unstructured magnitude pruning keeps.
    """
    kept = magnitude_mask(weight, density).sum((0, 1))
    return kept * kept.numel() > kept.sum()  # in whole numbers: a position may be the average
