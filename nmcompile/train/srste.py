"""N:M from scratch with a sparse-refined straight-through estimator (SR-STE)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nmcompile.sparsity import NM, Pattern
from nmcompile.sparsity.pattern import Axis
from nmcompile.train.method import MaskingMethod
from nmcompile.train.parametrizations import MagnitudeMask, MaskedWeight
from nmcompile.train.patterns import nm_pattern


class SRSTE(MaskingMethod):
    """Train with the n largest of every m weights, chosen anew in every step.

    Gradients reach pruned weights as if there were no mask, plus `decay` x weight, so that pruned
    weights shrink and the masks settle.

    Source: Zhou et al., ICLR 2021, equation 9.
    """

    pattern: NM

    def __init__(
        self,
        pattern: Pattern | str,
        *,
        axis: Axis | None = None,
        decay: float = 2e-4,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`; `axis` overrides the pattern's, `decay` is the paper's lambda.

        Raises:
            PatternError: the pattern is not N:M.
        """
        super().__init__(nm_pattern(pattern, axis, "SRSTE"), only=only, exclude=exclude)
        self.decay = decay

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        return MagnitudeMask(self.pattern, self.decay)
