"""Patterns as methods take them: spelled or not, and of one kind."""

from __future__ import annotations

from typing import TypeVar

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, OneByN, Pattern, parse_pattern
from nmcompile.sparsity.pattern import Axis

P = TypeVar("P", NM, OneByN)


def nm_pattern(pattern: Pattern | str, axis: Axis | None, method: str) -> NM:
    """Read an N:M pattern, along `axis` if one is given.

    Raises:
        PatternError: it is another pattern.
    """
    found = _read(pattern, NM, "an N:M pattern as 2:4", method)
    return found if axis is None else NM(found.n, found.m, axis)


def block_pattern(pattern: Pattern | str, method: str) -> OneByN:
    """Read a 1xN pattern.

    Raises:
        PatternError: it is another pattern.
    """
    return _read(pattern, OneByN, "a 1xN pattern as 1x16", method)


def _read(pattern: Pattern | str, kind: type[P], wanted: str, method: str) -> P:
    found = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(found, kind):
        raise PatternError(f"{method}: expected {wanted}, found {found}")
    return found
