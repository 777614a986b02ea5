"""The lines beside the rows, as SVG; nothing in it comes from a file."""

from __future__ import annotations

from typing import Final

from nmcompile.viewer.graph import Kind
from nmcompile.viewer.lanes import Row

HEIGHT: Final = 26  # px; rows of the table are as high (view.css)
WIDE: Final = 280
"""px: lanes stand closer where all of them would take more."""

_MARKS: Final[dict[Kind, str]] = {
    "sparse": '<circle r="5"/>',
    "dense": '<circle r="4.25" class="hollow"/>',
    "plain": '<circle r="3"/>',
    "tvm": '<path d="M0,-5L5,0L0,5L-5,0Z"/>',
    "rest": '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    "end": '<path d="M-5,-3.5H5L0,5Z"/>',
}


def draw_mark(kind: Kind) -> str:
    """The mark of a kind of rows, for the legend."""
    return f'<svg class="mark {kind}" viewBox="-7 -7 14 14" aria-hidden="true">{_MARKS[kind]}</svg>'


def draw_row(row: Row, kind: Kind, lanes: int) -> str:
    """The lines of one row, and its mark."""
    middle = HEIGHT / 2
    at = _x(row.lane, lanes)
    lines = [f"M{_x(lane, lanes)},0V{HEIGHT}" for lane in row.passing]
    for lane in row.reads:
        x = _x(lane, lanes)
        bend = f"M{x},0C{x},{middle * 0.7:g} {at},{middle * 0.3:g} {at},{middle:g}"
        lines.append(f"M{at},0V{middle:g}" if x == at else bend)
    if row.writes:
        lines.append(f"M{at},{middle:g}V{HEIGHT}")
    mark = f'<g class="mark {kind}" transform="translate({at},{middle:g})">{_MARKS[kind]}</g>'
    return _svg("".join(lines), mark, lanes)


def draw_heading(above: tuple[int, ...], below: tuple[int, ...], folded: bool, lanes: int) -> str:
    """The lines of a heading: what passes it, or what goes into the rows that it hides."""
    if not folded:
        return _svg("".join(f"M{_x(lane, lanes)},0V{HEIGHT}" for lane in above), "", lanes)
    middle = HEIGHT / 2
    lines = [f"M{_x(lane, lanes)},0V{middle:g}" for lane in above]
    lines += [f"M{_x(lane, lanes)},{middle:g}V{HEIGHT}" for lane in below]
    used = [_x(lane, lanes) for lane in (*above, *below)] or [_x(0, lanes)]
    bar = (
        f'<rect class="hidden-rows" x="{min(used) - 5:g}" y="{middle - 4:g}" rx="3" '
        f'width="{max(used) - min(used) + 10:g}" height="8"/>'
    )
    return _svg("".join(lines), bar, lanes)


def _x(lane: int, lanes: int) -> float:
    step = min(14.0, WIDE / max(lanes, 1))
    return round(9 + lane * step, 1)


def _svg(lines: str, marks: str, lanes: int) -> str:
    width = _x(lanes - 1, lanes) + 9
    path = f'<path class="line" d="{lines}"/>' if lines else ""
    return (
        f'<svg width="{width:g}" height="{HEIGHT}" viewBox="0 0 {width:g} {HEIGHT}" '
        f'aria-hidden="true">{path}{marks}</svg>'
    )
