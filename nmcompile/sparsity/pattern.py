"""The sparsity patterns and their spelling.

================  ==============================================================================
``dense``         no promise about zeros
``unstructured``  zeros anywhere
``2:4``           at most 2 non-zeros in every 4 weights along the input channel (OHWI order)
``2:4@flat``      the same along the flattened OIHW weight
``2:4@ohwi``      the same along the flattened OHWI weight
``1x16``          16 consecutive output channels keep or drop an input channel together
================  ==============================================================================

Behind ``1x16`` and ``unstructured``, which do not say it themselves, may stand the share of weights
to keep, where one is of use: ``1x16@0.5``, ``unstructured@0.1``.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from nmcompile.errors import PatternError

Axis = Literal["ic", "flat", "ohwi"]

MAX_M = 32
"""Longest N:M group; the longest that published models use."""

MAX_BLOCK = 64
"""Most output channels in a 1xN block: four AVX-512 vectors of fp32."""

_SPELLINGS = (
    "'dense', 'unstructured', 'N:M', 'N:M@flat' or 'N:M@ohwi' (as 2:4), '1xN' (as 1x16, or "
    "1x16@0.5 where half is to be kept)"
)
_SHARE = re.compile(r"(1x\d+|unstructured|dense|\d+:\d+(?:@[a-z]+)?)@([-+.\d][-+.\de]*|nan|inf)")
_NM = re.compile(r"(\d+):(\d+)(?:@(\w+))?")
_ONE_BY_N = re.compile(r"1x(\d+)")


@dataclass(frozen=True)
class Dense:
    """No promise about zeros; holds for every weight."""

    def __str__(self) -> str:
        """Return ``dense``."""
        return "dense"


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere; holds for every weight."""

    def __str__(self) -> str:
        """Return ``unstructured``."""
        return "unstructured"


@dataclass(frozen=True)
class NM:
    """At most `n` of every `m` consecutive weights are non-zero.

    On axis ``ic`` the weights of one output channel are read in HWI order, so that a group runs
    along the input channel at one kernel position, and on to the next position where the input
    channels are not a multiple of `m`. Each output channel starts a new group; its last group is
    short where kh * kw * in is not a multiple of `m`; only there do the groups differ from those
    of training code that cuts the whole flattened OHWI weight into runs of `m`. On axis ``flat``
    the OIHW weight is read as it lies in memory, across output channels; only the last group of the
    tensor may be short. Axis ``ohwi`` is what that training code leaves of a 3-channel stem, say:
    axis ``ic`` with groups that run on into the next output channel. A short group, too, holds at
    most `n` non-zeros.

    Source: SR-STE (Zhou et al., ICLR 2021), whose public models use both axes.

    Raises:
        PatternError: unless 1 <= n <= m <= 32 and the axis is known.
    """

    n: int
    m: int
    axis: Axis = "ic"

    def __post_init__(self) -> None:
        """Validate the numbers and the axis."""
        if not 1 <= self.n <= self.m <= MAX_M:
            raise PatternError(
                f"pattern {self.n}:{self.m}: expected N:M with 1 <= N <= M <= {MAX_M}; "
                "N is the number of weights kept in every M"
            )
        if self.axis not in get_args(Axis):
            raise PatternError(
                f"pattern {self.n}:{self.m}: unknown axis {self.axis!r}; expected 'ic' (along the "
                "input channel), 'flat' or 'ohwi' (along the flattened OIHW or OHWI weight)"
            )

    def __str__(self) -> str:
        """Return ``2:4`` on axis ic, ``2:4@flat`` on axis flat, ``2:4@ohwi`` on axis ohwi."""
        return f"{self.n}:{self.m}" + ("" if self.axis == "ic" else f"@{self.axis}")


@dataclass(frozen=True)
class OneByN:
    """`n` consecutive output channels share one keep/drop decision per input channel.

    A block is n output channels x 1 input channel x the whole kernel window, and is all zero or
    kept; a kept one may hold zeros. Where the output channels are not a multiple of `n`, the last
    blocks have fewer. `check` says how dropped blocks are told from kept ones that hold zeros.

    Source: 1xN pattern (Lin et al., TPAMI 2022); SUBP (Xiang et al., NeurIPS 2023).

    Raises:
        PatternError: unless 1 <= n <= 64.
    """

    n: int

    def __post_init__(self) -> None:
        """Validate the block size."""
        if not 1 <= self.n <= MAX_BLOCK:
            raise PatternError(
                f"pattern 1x{self.n}: expected 1xN with 1 <= N <= {MAX_BLOCK}; "
                "N is the number of output channels that are pruned together"
            )

    def __str__(self) -> str:
        """Return for example ``1x16``."""
        return f"1x{self.n}"


Pattern = Dense | Unstructured | NM | OneByN


def parse_pattern(text: str) -> Pattern:
    """Read a pattern from its spelling; the inverse of ``str(pattern)``.

    Case and surrounding blanks do not matter, and ``2:4@ic`` is understood as ``2:4``.

    Raises:
        PatternError: if the text is no pattern, or its numbers are out of range.
    """
    word = text.strip().lower()
    if word == "dense":
        return Dense()
    if word == "unstructured":
        return Unstructured()
    if found := _ONE_BY_N.fullmatch(word):
        return OneByN(int(found[1]))
    if found := _NM.fullmatch(word):
        n, m, axis = int(found[1]), int(found[2]), found[3] or "ic"
        if axis == "ic":
            return NM(n, m)
        for known in get_args(Axis):
            if axis == known:
                return NM(n, m, known)
        raise PatternError(
            f"pattern {text!r}: unknown axis {axis!r}; expected 'ic', 'flat' or 'ohwi'"
        )
    raise PatternError(f"pattern {text!r} is not understood; expected {_SPELLINGS}")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a weight; density: the share of it to keep, None where that is not said."""

    pattern: Pattern
    density: float | None = None

    def __str__(self) -> str:
        """Return for example ``1x16@0.5``."""
        return str(self.pattern) + ("" if self.density is None else f"@{self.density:g}")


def parse_wanted(text: str) -> Wanted:
    """Read a pattern with or without the share of weights to keep; the inverse of ``str(wanted)``.

    Raises:
        PatternError: as `parse_pattern`; or the share is none, or the pattern says it itself.
    """
    found = _SHARE.fullmatch(text.strip().lower())
    if found is None:
        return Wanted(parse_pattern(text))
    pattern = parse_pattern(found[1])
    if not isinstance(pattern, OneByN | Unstructured):
        raise PatternError(
            f"pattern {text!r}: {pattern} says itself how much is kept; write {pattern}"
        )
    try:
        density = float(found[2])
    except ValueError:
        density = math.nan
    if not 0 < density <= 1:
        raise PatternError(
            f"pattern {text!r}: expected the share of weights to keep behind the @, above 0 and at "
            f"most 1, found {found[2]}; write for example {pattern}@0.5"
        )
    return Wanted(pattern, density)


def one_density(wanted: Wanted, density: float | None) -> float | None:
    """The share of weights to keep, where the pattern and an argument may both say it.

    Raises:
        PatternError: they say different ones.
    """
    if None not in (wanted.density, density) and wanted.density != density:
        raise PatternError(
            f"pattern {str(wanted)!r} says how much is kept, and the density beside it is "
            f"{density}: expected one of them"
        )
    return density if wanted.density is None else wanted.density
