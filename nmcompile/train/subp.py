"""1xN from scratch by soft uniform block pruning (SUBP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nmcompile.errors import PatternError
from nmcompile.sparsity import OneByN, Pattern
from nmcompile.train.masks import as_blocks
from nmcompile.train.method import MaskingMethod
from nmcompile.train.parametrizations import BlockMask, MaskedWeight
from nmcompile.train.patterns import block_pattern
from nmcompile.train.schedule import Schedule, check_schedule, last_epoch, passed

Criterion = Literal["l1", "l2", "bpar"]


class SUBP(MaskingMethod):
    """Prune the lowest blocks of every output group each epoch, and regrow some by chance.

    Every group of n output channels keeps the same number of blocks. At the start of an epoch the
    (1 - density) x in lowest blocks, rounded down, are pruned; those that were pruned before score
    as zeros. Then as many as the schedule still allows are drawn, without replacement, from a
    softmax over their scores at temperature `tau`. From the epoch `end` on none is.

    Source: Xiang et al., NeurIPS 2023, section 3, and the authors' code, which decides where the
    paper leaves a choice: `SUBPConv2dV2` of github.com/JingyangXiang/SUBP.
    """

    pattern: OneByN

    def __init__(
        self,
        pattern: Pattern | str,
        density: float | None = None,
        *,
        criterion: Criterion = "l1",
        tau: float = 1.0,
        alpha: float = 1.0,
        schedule: Schedule = "cubic",
        start: int = 0,
        end: int | None = None,
        soft: bool = True,
        decay: float = 2e-4,
        seed: int = 0,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`.

        Args:
            pattern: 1xN; `1x16@0.25` says the density, too.
            density: share of the blocks of every output group that is left at the end; half of
                them by default.
            criterion: score of a block: its L1 or L2 norm, or "bpar", its L1 norm less `alpha` x
                how much it resembles the other blocks of its group.
            tau: temperature of the draw; high values make it uniform.
            alpha: weight of the resemblance.
            schedule: how the number of regrown blocks falls from `start` to `end`.
            start: epoch at which pruning begins.
            end: epoch from which nothing is regrown; None for three quarters of the epochs.
            soft: whether gradients reach pruned weights, so that they can come back.
            decay: of pruned weights, as in SR-STE; only with `soft`.
            seed: of the draws, which depend on it, the epoch and the layer alone.
            only: as in `MaskingMethod`.
            exclude: as in `MaskingMethod`.

        Raises:
            PatternError: the pattern is not 1xN, or an argument is out of range.
        """
        blocks, self.density = block_pattern(pattern, density, "SUBP")
        super().__init__(blocks, only=only, exclude=exclude)
        if criterion not in get_args(Criterion):
            known = ", ".join(get_args(Criterion))
            raise PatternError(f"SUBP: criterion {criterion!r} is not known; expected {known}")
        if tau <= 0:
            raise PatternError(f"SUBP: expected a temperature tau above 0, found {tau}")
        if start < 0 or (end is not None and end < start):
            raise PatternError(f"SUBP: expected 0 <= start <= end, found {start} and {end}")
        check_schedule(schedule)
        self.criterion, self.tau, self.alpha, self.schedule = criterion, tau, alpha, schedule
        self.start, self.end, self.seed = start, end, seed
        self.decay = decay if soft else None

    @torch.no_grad()
    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Choose the blocks of this epoch; nothing before `start` and behind `end`."""
        end = last_epoch(self.start, self.end, epochs)
        if not self.start <= epoch <= end:
            return
        left = 1.0 - passed(self.schedule, epoch, self.start, end)
        for index, (place, masked) in enumerate(self._prepared):
            assert isinstance(masked, BlockMask)
            blocks = as_blocks(masked(place.dense), self.pattern.n)
            masked.keep.copy_(self._choose(blocks, left, draws(self.seed, epoch, index)))

    def _choose(self, blocks: Tensor, left: float, generator: np.random.Generator) -> Tensor:
        """The blocks to keep, (groups, in), from (groups, in, weights)."""
        scores = self._scores(blocks).double().cpu()
        inputs = scores.shape[1]
        pruned = _whole((1.0 - self.density) * inputs)
        lowest = scores.argsort(dim=1, stable=True)[:, :pruned]
        keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
        regrown = _whole((1.0 - self.density) * left * inputs)
        if regrown:
            # The largest sums of a logit and Gumbel noise are draws from the softmax.
            logits = nn.functional.normalize(scores.gather(1, lowest), dim=1) / self.tau
            noise = torch.from_numpy(generator.gumbel(size=tuple(logits.shape)))
            drawn = (logits + noise).topk(regrown, dim=1).indices
            keep.scatter_(1, lowest.gather(1, drawn), True)
        return keep

    def _scores(self, blocks: Tensor) -> Tensor:
        """Scores of blocks (groups, in, weights)."""
        if self.criterion == "l2":
            return blocks.square().sum(2).sqrt()
        size = blocks.abs().sum(2)
        if self.criterion == "l1":
            return size
        # Zero blocks stay zero, so they resemble none, themselves included.
        unit = nn.functional.normalize(blocks, dim=2)
        alike = _shares((unit @ unit.transpose(1, 2)).abs().sum(2))
        return _shares(size) - self.alpha * torch.where(alike == 0, 1.0, alike)

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        shape = (len(weight) // self.pattern.n, weight.shape[1])
        keep = torch.ones(shape, dtype=torch.bool, device=weight.device)
        return BlockMask(self.pattern, keep, self.decay)


def draws(seed: int, epoch: int, layer: int) -> np.random.Generator:
    """The chance of one layer in one epoch."""
    return np.random.default_rng((seed, epoch, layer))


def _whole(count: float) -> int:
    """Rounded down, but for what rounding took from a whole number."""
    return math.floor(count + 1e-9)


def _shares(scores: Tensor) -> Tensor:
    """Of the group's sum."""
    total = scores.sum(1, keepdim=True)
    return scores / torch.where(total > 0, total, torch.ones_like(total))
