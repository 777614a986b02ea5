"""1xN from scratch by soft uniform block pruning (SUBP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nmcompile.errors import PatternError
from nmcompile.sparsity import OneByN, Pattern
from nmcompile.sparsity.project import kept_channels
from nmcompile.train.masks import as_blocks
from nmcompile.train.method import MaskingMethod, dense_weight
from nmcompile.train.parametrizations import BlockMask, MaskedWeight
from nmcompile.train.patterns import block_pattern
from nmcompile.train.schedule import Schedule, last_epoch, progress, remaining

Criterion = Literal["l1", "l2", "bpar"]


class SUBP(MaskingMethod):
    """Prune the lowest blocks of every output group each epoch, and regrow some by chance.

    Every group of n output channels keeps the same number of blocks. At the start of an epoch the
    in - round(density x in) lowest blocks are pruned; then as many of them as the schedule still
    allows are drawn, without replacement, from a softmax over their scores at temperature `tau`.
    From the epoch `end` on none is.

    Source: Xiang et al., NeurIPS 2023, section 3.
    """

    pattern: OneByN

    def __init__(
        self,
        pattern: Pattern | str,
        density: float | None = None,
        *,
        criterion: Criterion = "l1",
        tau: float = 1.0,
        alpha: float = 0.2,
        schedule: Schedule = "cubic",
        start: int = 0,
        end: int | None = None,
        soft: bool = True,
        decay: float = 0.0,
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
        remaining(schedule, 0.0)  # refuses what it does not know
        self.criterion, self.tau, self.alpha, self.schedule = criterion, tau, alpha, schedule
        self.start, self.end, self.seed = start, end, seed
        self.decay = decay if soft else None

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Choose the blocks of this epoch; nothing before `start` and behind `end`."""
        end = last_epoch(self.start, self.end, epochs)
        if not self.start <= epoch <= end:
            return
        left = remaining(self.schedule, progress(epoch, self.start, end))
        for index, (module, masked) in enumerate(self._prepared):
            assert isinstance(masked, BlockMask)
            seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            masked.keep.copy_(self._choose(dense_weight(module), left, generator))

    @torch.no_grad()
    def _choose(self, weight: Tensor, left: float, generator: torch.Generator) -> Tensor:
        """The blocks to keep, (groups, in)."""
        scores = self._scores(as_blocks(weight, self.pattern.n)).cpu()
        inputs = scores.shape[1]
        pruned = inputs - kept_channels(self.density, inputs)
        lowest = scores.argsort(dim=1, stable=True)[:, :pruned]
        keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
        regrown = int(left * pruned)
        if regrown:
            chances = torch.softmax(scores.gather(1, lowest).double() / self.tau, dim=1)
            # Far below the best, a chance may round to zero; a draw needs enough of them.
            drawn = torch.multinomial(chances + 1e-300, regrown, generator=generator)
            keep.scatter_(1, lowest.gather(1, drawn), True)
        return keep

    def _scores(self, blocks: Tensor) -> Tensor:
        """Scores of blocks (groups, in, weights), as shares of the group's mean."""
        size = blocks.abs().sum(2) if self.criterion != "l2" else blocks.square().sum(2).sqrt()
        size = _relative(size)
        if self.criterion != "bpar":
            return size
        # Zero blocks stay zero, so they resemble none.
        unit = nn.functional.normalize(blocks, dim=2)
        alike = (unit @ unit.transpose(1, 2)).abs().sum(2)
        return size - self.alpha * _relative(alike - unit.square().sum(2))

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        shape = (len(weight) // self.pattern.n, weight.shape[1])
        keep = torch.ones(shape, dtype=torch.bool, device=weight.device)
        return BlockMask(self.pattern, keep, self.decay)


def _relative(scores: Tensor) -> Tensor:
    mean = scores.mean(1, keepdim=True)
    return scores / torch.where(mean > 0, mean, torch.ones_like(mean))
