"""Text for people: tables, facts and counts, as the command line prints them and `str` spells them.

A table that is wider than the page says its sentences below it, then leaves out columns that it can
spare, and folds what is too long only then.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nmcompile.layer_facts import known_facts
from nmcompile.units import count

WIDE = 160
"""Columns where stdout is a file or pipe: nothing there needs wrapping earlier."""

GAP = 2  # blanks between columns
SHORT = 4  # letters of an answer ("no") that stays in a cell whose sentence stands below
FOLDED = 16  # a longer word may be folded


def printable(text: str) -> str:
    """Escape what does not print: names come from files, and terminals obey control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def page_width() -> int:
    """Columns of the terminal that stdout is, `WIDE` where it is none."""
    try:
        terminal = sys.stdout.isatty()
    except (AttributeError, ValueError):  # none, or closed
        terminal = False
    return shutil.get_terminal_size().columns if terminal else WIDE


def spell_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    *,
    prose: int | None = None,
    spare: Sequence[int] = (),
) -> str:
    """A table of as many columns as the page, without a newline at the end.

    Args:
        title: a line above it, if any.
        columns: their heads.
        rows: cells, as many as columns.
        right: indices of columns of numbers.
        prose: index of the column of sentences, which stand below the table where it is too wide.
        spare: indices of columns to leave out where it still is, the first one first.
    """
    width = page_width()
    cells = [[printable(cell) for cell in row] for row in rows]
    shown = list(range(len(columns)))
    below: list[str] = []
    if prose is not None and _natural(columns, cells, shown) > width:
        below = _number(cells, prose)
    left_out = []
    for index in spare:
        if _natural(columns, cells, shown) <= width:
            break
        shown.remove(index)
        left_out.append(columns[index])
    if left_out:
        below.append(f"too narrow for: {', '.join(left_out)}")
    lines = [printable(title)] * bool(title) + _render(columns, cells, shown, set(right), width)
    for text in below:
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _natural(columns: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int]) -> int:
    """Columns that nothing has to be folded in."""
    from rich.cells import cell_len

    widest = [max(map(cell_len, (columns[i], *(row[i] for row in cells)))) for i in shown]
    return sum(widest) + GAP * (len(shown) - 1)


def _number(cells: Sequence[list[str]], prose: int) -> list[str]:
    """Put numbers in the place of sentences; returns these, each once."""
    numbers: dict[str, int] = {}
    for row in cells:
        answer, colon, sentence = row[prose].partition(": ")
        if not colon or len(answer) > SHORT:
            answer, sentence = "", row[prose]
        if " " in sentence:
            number = numbers.setdefault(sentence, len(numbers) + 1)
            row[prose] = f"{answer} [{number}]".strip()
    return [f"[{number}] {sentence}" for sentence, number in numbers.items()]


def _render(
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    shown: Sequence[int],
    right: set[int],
    width: int,
) -> list[str]:
    import io

    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1)
    )
    for index in shown:
        words = [word for row in cells for word in row[index].split()] + columns[index].split()
        longest = max(map(cell_len, words))
        table.add_column(
            Text(columns[index]),
            justify="right" if index in right else "left",
            overflow="fold",
            min_width=longest if index in right else min(longest, FOLDED),
        )
    for row in cells:
        # As Text, so that brackets in layer names are not read as markup.
        table.add_row(*(Text(row[index]) for index in shown))
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def spell_facts(facts: Mapping[str, str]) -> str:
    """`name  value` lines; on a narrow page long values go on under themselves."""
    room, page = max(map(len, facts)) + 2, page_width()
    lines = []
    for name, value in facts.items():
        line = f"{name:<{room}}{printable(value)}"
        if page < WIDE:
            line = textwrap.fill(
                line,
                page,
                subsequent_indent=" " * room,
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return "\n".join(lines)


def spell_layers(layers: Sequence[Mapping[str, Any]], *, checked: bool = False) -> str:
    """The layers of a report or manifest (`nmcompile.LayerReport.to_dict`).

    Args:
        layers: one mapping per layer; those of artifacts are free-form, so keys may be missing.
        checked: a pattern was asked for: show how often each layer breaks it.
    """
    columns = ["layer", "weight", "pattern", "density", "MACs", "kernel", "sparse"]
    if checked:
        columns.insert(5, "violations")
    rows = []
    for layer in map(known_facts, layers):
        sparse = "yes" if layer.get("sparse") else f"no: {layer.get('reason') or 'unknown'}"
        row = [
            str(layer.get("name", "?")),
            "x".join(map(str, layer.get("shape", ()))),
            str(layer.get("pattern", "?")),
            f"{layer.get('density', 1.0):.3f}",
            count(layer.get("macs", 0)),
            str(layer.get("kernel", "?")).partition("__")[0],
            sparse,
        ]
        if checked:
            first = layer.get("first_violation")
            where = f", first at {tuple(first)}" if first else ""
            row.insert(5, f"{layer.get('violations', 0)}{where}")
        rows.append(row)
    return spell_table("", columns, rows, (3, 4), prose=len(columns) - 1, spare=(1, 4))


WIDE_LIST = 6
"""Kinds of operators, and reasons, that a cell of the table holds."""


def spell_segments(segments: Sequence[Mapping[str, Any]]) -> str:
    """The segments of a report or manifest (`SegmentReport.to_dict`).

    Args:
        segments: one mapping each; those of artifacts are free-form, so keys may be missing.
    """
    rows = []
    for number, segment in enumerate(segments, 1):
        reasons = segment.get("reasons")
        rows.append(
            (
                str(number),
                _text(segment.get("runs")),
                _text(segment.get("nodes")),
                _operators(segment.get("operators")),
                _short([_text(reason) for reason in reasons] if type(reasons) is list else []),
            )
        )
    columns = ("part", "runs in", "nodes", "operators", "not ours because")
    return spell_table("", columns, rows, (0, 2), prose=4)


def _operators(found: object) -> str:
    if type(found) is not dict:
        return "?"
    counts = {str(name): count for name, count in found.items() if type(count) is int}
    ordered = sorted(counts, key=lambda name: -counts[name])
    return _short([f"{counts[name]} x {name}" for name in ordered], ", ")


def _short(words: Sequence[str], between: str = "; ") -> str:
    more = f"{between}and {len(words) - WIDE_LIST} more" if len(words) > WIDE_LIST else ""
    return between.join(words[:WIDE_LIST]) + more


def _text(value: object) -> str:
    return str(value) if type(value) in (str, int) else "?"


def spell_operators(operators: Mapping[str, int]) -> str:
    """What takes TVM's own lowering, as one phrase."""
    spelled = ", ".join(f"{number} x {name}" for name, number in operators.items())
    return f"{spelled} (TVM's own lowering)" if spelled else "none: every operator has a kernel"


def size(nbytes: int) -> str:
    """A size in bytes, with a decimal prefix above a thousand."""
    return f"{count(nbytes)}B" if nbytes >= 1000 else f"{nbytes} B"
