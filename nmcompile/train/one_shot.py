"""One-shot pruning by magnitude, with masks that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nmcompile.sparsity import NM, Pattern, Unstructured
from nmcompile.sparsity import OneByN as OneByNPattern
from nmcompile.sparsity.pattern import Axis
from nmcompile.sparsity.project import checked_density
from nmcompile.train.arrange import Arrangement
from nmcompile.train.masks import as_blocks, magnitude_mask, nm_mask, spread_blocks
from nmcompile.train.method import MaskingMethod
from nmcompile.train.parametrizations import FixedMask, MaskedWeight
from nmcompile.train.patterns import block_pattern, nm_pattern

if TYPE_CHECKING:
    from nmcompile.passes.permutation.search import LayerSearch
    from nmcompile.sparsity.groups import Array


class _OneShot(MaskingMethod):
    """Base: `prepare` prunes, training fine-tunes what is left.

    arrangement: whether and how `prepare` reorders the channels before.
    """

    arrangement: Arrangement | None = None

    def _arrange(self, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
        if self.arrangement is None:
            return {}
        return self.arrangement.apply(model, self._search(), names, type(self).__name__)

    def _search(self) -> LayerSearch:
        raise NotImplementedError

    def _mask_of(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        return FixedMask(self.pattern, self._mask_of(weight))


class ASP(_OneShot):
    """Keep the n largest of every m weights of a trained model.

    With `permute`, `prepare` first puts the channels in an order in which that keeps more; the
    function of the model is the same until masks are on. `layers` notes what each layer gains.

    Source: Mishra et al., arXiv:2104.08378, section 4; the permutations, Pool and Yu, NeurIPS 2021.
    """

    pattern: NM

    def __init__(
        self,
        pattern: Pattern | str,
        *,
        axis: Axis | None = None,
        permute: bool = False,
        example_inputs: Any = None,
        seed: int = 0,
        time_limit: float = 60.0,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`.

        Args:
            pattern: N:M.
            axis: overrides the pattern's.
            permute: whether to reorder channels.
            example_inputs: to trace the model with, as in `nmcompile.fold`; by default one image of
                224 x 224 with the channels of the first convolution.
            seed: of the search, whose result depends on nothing else while there is time.
            time_limit: seconds that it may take.
            only: as in `MaskingMethod`.
            exclude: as in `MaskingMethod`.

        Raises:
            PatternError: the pattern is not N:M, or the time limit below 0.
        """
        super().__init__(nm_pattern(pattern, axis, "ASP"), only=only, exclude=exclude)
        if permute:
            self.arrangement = Arrangement(example_inputs, seed, time_limit)

    def _search(self) -> LayerSearch:
        from nmcompile.passes.permutation.search import GroupSearch

        return GroupSearch(self.pattern)

    def _mask_of(self, weight: Tensor) -> Tensor:
        return nm_mask(weight, self.pattern)


class OneByN(_OneShot):
    """Keep the blocks with the largest L1 norms of every layer, however they spread.

    Output groups may keep different numbers of blocks; `SUBP` keeps them equal. With `rearrange`,
    `prepare` first puts output channels in an order in which the blocks keep more; the function of
    the model is the same until masks are on. `layers` notes what each layer gains.

    Source: Lin et al., TPAMI 2022, section 3.
    """

    pattern: OneByNPattern

    def __init__(
        self,
        pattern: Pattern | str,
        density: float | None = None,
        *,
        rearrange: bool = False,
        example_inputs: Any = None,
        seed: int = 0,
        time_limit: float = 60.0,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """As `MaskingMethod`.

        Args:
            pattern: 1xN; `1x16@0.25` says the density, too.
            density: share of the blocks to keep; half of them by default.
            rearrange: whether to reorder output channels.
            example_inputs: as in `ASP`.
            seed: as in `ASP`.
            time_limit: as in `ASP`.
            only: as in `MaskingMethod`.
            exclude: as in `MaskingMethod`.

        Raises:
            PatternError: the pattern is not 1xN, the density not between 0 and 1, or the time limit
                below 0.
        """
        blocks, self.density = block_pattern(pattern, density, "OneByN")
        super().__init__(blocks, only=only, exclude=exclude)
        if rearrange:
            self.arrangement = Arrangement(example_inputs, seed, time_limit)

    def _kept(self, norms: Tensor) -> Tensor:
        """Which blocks are kept, from their norms (groups, in)."""
        return magnitude_mask(norms, self.density)

    def _search(self) -> LayerSearch:
        from nmcompile.passes.permutation.search import BlockSearch

        def rule(norms: Array) -> Array:
            return np.asarray(self._kept(torch.from_numpy(norms)).numpy())

        return BlockSearch(self.pattern, None, rule)

    def _mask_of(self, weight: Tensor) -> Tensor:
        norms = as_blocks(weight, self.pattern.n).abs().sum(2)
        return spread_blocks(self._kept(norms), weight).contiguous()


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
