"""The torch parametrizations that mask a weight while it is trained.

Each is registered on `weight`; what it keeps beside the dense weight is a buffer or a parameter, so
that a `state_dict` holds all of it. Masks change in `Method.on_epoch` and `on_step`, never in a
forward pass: replicas of data-parallel training would lose the change.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from nmcompile.sparsity import NM, Pattern
from nmcompile.train.masks import lines_of, nm_mask, spread_blocks, unlines


class _StraightThrough(torch.autograd.Function):
    """weight * mask; gradients pass the mask, and pruned weights get `decay` x weight on top."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.decay = decay
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        gradient = gradients[0]
        if ctx.decay:
            gradient = gradient + ctx.decay * (~mask * weight)
        return gradient, None, None


class MaskedWeight(nn.Module):
    """Base: `forward(weight)` is the weight with some entries zero.

    pattern: what the masked weight holds.
    decay: of pruned weights (SR-STE's lambda), 0 for none; None stops their gradients altogether.
    decay_scale: share of `decay` that the next backward pass adds.
    """

    decay_scale = 1.0

    def __init__(self, pattern: Pattern, decay: float | None) -> None:
        super().__init__()
        self.pattern, self.decay = pattern, decay

    def mask_of(self, weight: Tensor) -> Tensor:
        """The boolean mask of a weight."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        mask = self.mask_of(weight)
        if self.decay is None:
            return weight * mask
        masked: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, mask, self.decay * self.decay_scale
        )
        return masked


class MagnitudeMask(MaskedWeight):
    """N:M by magnitude, chosen anew whenever the weight is read."""

    pattern: NM

    def mask_of(self, weight: Tensor) -> Tensor:
        """The n largest of every m."""
        return nm_mask(weight, self.pattern)


class FixedMask(MaskedWeight):
    """A mask that stays as it was chosen, shape of the weight."""

    mask: Tensor

    def __init__(self, pattern: Pattern, mask: Tensor) -> None:
        super().__init__(pattern, None)
        self.register_buffer("mask", mask)

    def mask_of(self, weight: Tensor) -> Tensor:
        """The mask."""
        return self.mask


class BlockMask(MaskedWeight):
    """1xN blocks; `keep` has shape (out / n, in)."""

    keep: Tensor

    def __init__(self, pattern: Pattern, keep: Tensor, decay: float | None) -> None:
        super().__init__(pattern, decay)
        self.register_buffer("keep", keep)

    def mask_of(self, weight: Tensor) -> Tensor:
        """The mask of single weights."""
        return spread_blocks(self.keep, weight)


MAX_COMBINATIONS = 4096  # 5:16 is the largest below; scores take this times as much as groups


class _Membership(torch.autograd.Function):
    """1 where a score left over chooses a weight; the scores' gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, left: Tensor, combinations: Tensor) -> Tensor:
        ctx.save_for_backward(left, combinations)
        return (left.to(scores.dtype) @ combinations > 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        left, combinations = ctx.saved_tensors
        return left * (gradients[0] @ combinations.t()), None, None


class BestCombination(MaskedWeight):
    """Every group of m weights has a learnable score per combination of n of them.

    A weight is kept while a combination that is left holds it.

    scores: (groups, combinations); `left`: which are still candidates; `combinations`: 0/1,
    (combinations, m).
    """

    pattern: NM
    left: Tensor
    combinations: Tensor

    def __init__(self, pattern: NM, weight: Tensor) -> None:
        super().__init__(pattern, None)
        n, m = pattern.n, pattern.m
        chosen = list(itertools.combinations(range(m), n))
        table = torch.zeros(len(chosen), m, dtype=weight.dtype, device=weight.device)
        for row, columns in zip(table, chosen, strict=True):
            row[list(columns)] = 1.0
        self.register_buffer("combinations", table)
        shape = (weight.numel() // m, len(chosen))
        # LBC's start: the scores of the combinations that hold a weight sum to 1.
        self.scores = nn.Parameter(weight.new_full(shape, 1 / math.comb(m - 1, n - 1)))
        self.register_buffer("left", torch.ones(shape, dtype=torch.bool, device=weight.device))

    @torch.no_grad()
    def keep_best(self, count: int) -> None:
        """Leave the `count` candidates with the highest scores in every group."""
        scores = self.scores.masked_fill(~self.left, -torch.inf)
        best = scores.topk(count, dim=1).indices
        self.left &= torch.zeros_like(self.left).scatter_(1, best, True)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight where a combination is left; gradients reach weights and scores."""
        member: Tensor = _Membership.apply(  # type: ignore[no-untyped-call]
            self.scores, self.left, self.combinations
        )
        mask = unlines(member.reshape(lines_of(weight, self.pattern).shape), weight, self.pattern)
        return weight * mask
