"""Tables of the page, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A column; unit stands beside its name; numbers stand right."""

    name: str
    unit: str = ""
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell.

    key: what the column is sorted by; None comes last.
    bar: length of a bar behind the text, 0 to 1.
    tone: "ours", "good", "bad" or "noisy"; strength of the first three: 0 to 1.
    note: a longer text for who points at it.
    """

    text: str
    key: float | str | None = None
    bar: float | None = None
    tone: str = ""
    strength: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Cells, one for each column; tags are what the page's filters look at."""

    cells: Sequence[Cell]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table; caption says what it holds. The first column heads each row."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def words(text: str, tone: str = "", note: str = "") -> Cell:
    """A cell of text."""
    return Cell(text, text.casefold() if text else None, tone=tone, note=note)


def number(value: float | None, template: str = "{:.2f}", **more: float | str | None) -> Cell:
    """A cell of a number, empty for None and NaN."""
    if value is None or math.isnan(value):
        return Cell("")
    return Cell(template.format(value), value, **more)  # type: ignore[arg-type]


def decimals(values: Sequence[float]) -> str:
    """A template that writes a column of times with as many decimals as its smallest needs."""
    least = min((value for value in values if value > 0), default=1.0)
    return "{:.3f}" if least < 0.1 else "{:.2f}"


def times(ratio: float) -> str:
    """A ratio: 2.00x."""
    return f"{ratio:.2f}x"


def short_ms(ms: float) -> str:
    """A time in a sentence: three digits."""
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms:.0f} ms"


def join(names: Sequence[str]) -> str:
    """Names in words: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
