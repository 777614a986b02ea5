"""Patterns as methods take them: spelled or not, and of one kind."""

from __future__ import annotations

from typing import TypeVar

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, OneByN, Pattern, Wanted, one_density, parse_wanted
from nmcompile.sparsity.pattern import Axis
from nmcompile.sparsity.project import checked_density

P = TypeVar("P", NM, OneByN)

HALF = 0.5
"""Share of blocks to keep where nothing is said."""


def nm_pattern(pattern: Pattern | str, axis: Axis | None, method: str) -> NM:
    """Read an N:M pattern, along `axis` if one is given.

    Raises:
        PatternError: it is another pattern.
    """
    found = _of_kind(_wanted(pattern).pattern, NM, "an N:M pattern as 2:4", method)
    return found if axis is None else NM(found.n, found.m, axis)


def block_pattern(
    pattern: Pattern | str, density: float | None, method: str
) -> tuple[OneByN, float]:
    """Read a 1xN pattern and the share of blocks to keep, which either may say; else `HALF`.

    Raises:
        PatternError: it is another pattern, or the density is none, or said twice.
    """
    wanted = _wanted(pattern)
    found = _of_kind(wanted.pattern, OneByN, "a 1xN pattern as 1x16", method)
    said = one_density(wanted, density)
    return found, checked_density(found, HALF if said is None else said)


def _wanted(pattern: Pattern | str) -> Wanted:
    return parse_wanted(pattern) if isinstance(pattern, str) else Wanted(pattern)


def _of_kind(found: Pattern, kind: type[P], wanted: str, method: str) -> P:
    if not isinstance(found, kind):
        raise PatternError(f"{method}: expected {wanted}, found {found}")
    return found
