"""N:M by learning which combination of weights of a group is best (LBC)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, Pattern
from nmcompile.sparsity.pattern import Axis
from nmcompile.train.method import MaskingMethod
from nmcompile.train.parametrizations import MAX_COMBINATIONS, BestCombination, MaskedWeight
from nmcompile.train.patterns import nm_pattern
from nmcompile.train.schedule import last_epoch, progress


class LBC(MaskingMethod):
    """Give every combination of n of m weights a score, and remove the lowest ones step by step.

    Scores are parameters of the model (`...scores`) and train with the weights; the authors let
    them decay as weights do. Between the epochs `start` and `end` all but one are removed from
    every group, fast at first, by a power of what is left of the way, rounded up: the last goes at
    `end`.

    Source: Zhang et al., NeurIPS 2022, section 3.
    """

    pattern: NM

    def __init__(
        self,
        pattern: Pattern | str,
        start: int = 0,
        end: int | None = None,
        *,
        power: float = 3.0,
        axis: Axis | None = None,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`.

        Args:
            pattern: N:M.
            start: epoch up to which all combinations are kept.
            end: epoch from which one is left; None for three quarters of the epochs.
            power: of the schedule; the authors have 3 for residual networks, and 4 for DeiT.
            axis: overrides the pattern's.
            only: as in `MaskingMethod`.
            exclude: as in `MaskingMethod`.

        Raises:
            PatternError: the pattern is not N:M or has too many combinations, `end` does not come
                after `start`, or the power is not above 0.
        """
        super().__init__(nm_pattern(pattern, axis, "LBC"), only=only, exclude=exclude)
        self.start, self.end, self.power = start, end, power
        count = math.comb(self.pattern.m, self.pattern.n)
        if count > MAX_COMBINATIONS:
            raise PatternError(
                f"LBC: {self.pattern} has {count} combinations per group, expected at most "
                f"{MAX_COMBINATIONS}, each of which takes a score; use SRSTE"
            )
        if start < 0 or (end is not None and end < start):
            raise PatternError(f"LBC: expected 0 <= start <= end, found {start} and {end}")
        if not power > 0:
            raise PatternError(f"LBC: expected a power above 0, found {power}")

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Remove the lowest scores of every group down to the epoch's number."""
        done = progress(epoch, self.start, last_epoch(self.start, self.end, epochs))
        left = (1.0 - done) ** self.power
        for _, masked in self._prepared:
            assert isinstance(masked, BestCombination)
            total = masked.left.shape[1]
            masked.keep_best(1 + math.ceil((total - 1) * left))

    def _settle(self, model: nn.Module) -> None:
        """Groups with several candidates left keep the best."""
        for module in model.modules():
            if isinstance(module, BestCombination):
                module.keep_best(1)

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        return BestCombination(self.pattern, weight)
