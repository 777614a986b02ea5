"""One-shot pruning by magnitude, with masks that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nmcompile.sparsity import NM, Pattern, Unstructured
from nmcompile.sparsity import OneByN as OneByNPattern
from nmcompile.sparsity.pattern import Axis
from nmcompile.sparsity.project import checked_density
from nmcompile.train.masks import as_blocks, magnitude_mask, nm_mask, spread_blocks
from nmcompile.train.method import MaskingMethod
from nmcompile.train.parametrizations import FixedMask, MaskedWeight
from nmcompile.train.patterns import block_pattern, nm_pattern


class _OneShot(MaskingMethod):
    """Base: `prepare` prunes, training fine-tunes what is left."""

    def _mask_of(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        return FixedMask(self.pattern, self._mask_of(weight))


class ASP(_OneShot):
    """Keep the n largest of every m weights of a trained model.

    Source: Mishra et al., arXiv:2104.08378, section 4.
    """

    pattern: NM

    def __init__(
        self,
        pattern: Pattern | str,
        *,
        axis: Axis | None = None,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`; `axis` overrides the pattern's.

        Raises:
            PatternError: the pattern is not N:M.
        """
        super().__init__(nm_pattern(pattern, axis, "ASP"), only=only, exclude=exclude)

    def _mask_of(self, weight: Tensor) -> Tensor:
        return nm_mask(weight, self.pattern)


class OneByN(_OneShot):
    """Keep the blocks with the largest L1 norms of every layer, however they spread.

    Output groups may keep different numbers of blocks; `SUBP` keeps them equal.

    Source: Lin et al., TPAMI 2022, section 3.
    """

    pattern: OneByNPattern

    def __init__(
        self,
        pattern: Pattern | str,
        density: float,
        *,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`; `density` is the share of blocks to keep.

        Raises:
            PatternError: the pattern is not 1xN, or the density not between 0 and 1.
        """
        super().__init__(block_pattern(pattern, "OneByN"), only=only, exclude=exclude)
        self.density = checked_density(self.pattern, density)

    def _mask_of(self, weight: Tensor) -> Tensor:
        norms = as_blocks(weight, self.pattern.n).abs().sum(2)
        return spread_blocks(magnitude_mask(norms, self.density), weight).contiguous()


class Magnitude(_OneShot):
    """Keep the largest weights of every layer, wherever they are.

    Source: Han et al., NeurIPS 2015.
    """

    def __init__(
        self,
        density: float,
        *,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`; `density` is the share of weights to keep.

        Raises:
            PatternError: the density is not between 0 and 1.
        """
        super().__init__(Unstructured(), only=only, exclude=exclude)
        self.density = checked_density(self.pattern, density)

    def _mask_of(self, weight: Tensor) -> Tensor:
        return magnitude_mask(weight, self.density)
