"""What each plot shows: points, a sentence that says it, and a table of the same values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nmcompile.bench.break_even import break_even
from nmcompile.bench.engines.table import OURS
from nmcompile.bench.report.data import Entry, engine_name, family, pattern_name, setting
from nmcompile.bench.report.series import Palette, Series
from nmcompile.bench.report.table import Cell, Column, Row, Table, number, short_ms, times, words

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True)
class Point:
    """One mark: where it is, of which series, and what is said of it.

    low, high: its interval. size: share of the panel's total, where the area says something.
    label: a text beside it. noisy: drawn hollow.
    """

    x: float | str
    y: float | str
    series: Series
    said: str
    low: float | None = None
    high: float | None = None
    size: float | None = None
    label: str = ""
    noisy: bool = False


@dataclass(frozen=True)
class Guide:
    """A level, "y" or "x", with a name; a break-even stands at a value of x where y is 1."""

    kind: str
    at: float
    name: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One plot.

    said: what it shows, with its best and worst values, for who cannot see it.
    note: what stands under it for all.
    """

    kind: str
    title: str
    said: str
    note: str
    tags: dict[str, str]
    points: Sequence[Point]
    table: Table
    guides: Sequence[Guide] = field(default_factory=tuple)


def tags(entry: Entry) -> dict[str, str]:
    """What the filters of the page look at."""
    case = entry.case
    return {
        "site": entry.site.name,
        "model": case.model,
        "threads": str(case.threads),
        "batch": str(case.batch),
        "precision": case.dtype,
    }


def mixed_tags(entry: Entry) -> dict[str, str]:
    """Of what shows all precisions."""
    return {name: value for name, value in tags(entry).items() if name != "precision"}


def grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    """Items by key, in the order of their first."""
    found: dict[_K, list[_T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def headline(entry: Entry, several_sites: bool, *parts: str) -> str:
    """A title such as "ResNet-50, 1 thread", with the machine where there are several."""
    words = [entry.case.model, *parts]
    return ", ".join([*words, entry.site.name] if several_sites else words)


def ratio_words(entry: Entry) -> str:
    """The ratio in words: "6.39x (6.20 to 6.51) the speed of openvino"."""
    if entry.ratio is None or entry.baseline is None:
        return ""
    between = f" ({entry.interval[0]:.2f} to {entry.interval[1]:.2f})" if entry.interval else ""
    return f"{times(entry.ratio)}{between} the speed of {baseline_name(entry)}"


def baseline_name(entry: Entry) -> str:
    """What the entry is compared with."""
    if entry.baseline is None:
        return ""
    if entry.baseline.engine == OURS:
        return "our dense pattern"
    return engine_name(entry.baseline, entry.case.dtype)


def noise_words(entry: Entry) -> str:
    """The verdict, where it is not quiet."""
    return "" if entry.case.noise == "quiet" else f", {entry.case.noise}"


def density_panels(entries: Sequence[Entry], palette: Palette, several: bool) -> list[Panel]:
    """Speed-up over density, one panel for each site, model, setting and precision.

    Only where there are two densities or more.
    """
    several_dtypes = len({entry.case.dtype for entry in entries if entry.ours}) > 1
    rated = [e for e in entries if e.ratio is not None and e.case.density > 0]
    panels = []
    for group in grouped(
        rated, lambda e: (e.site, e.case.model, setting(e.case), e.case.dtype)
    ).values():
        if len({entry.case.density for entry in group if not entry.dense}) < 2:
            continue
        lines = grouped(group, lambda e: palette.of_family(e.case))
        guides = [Guide("y", 1.0, "", "--ink")]
        marks: dict[str, float | None] = {}
        highest: dict[str, float] = {}
        table_rows = []
        for series, line in lines.items():
            line.sort(key=lambda e: -e.case.density)
            table_rows += [_density_row(entry) for entry in line]
            if family(line[0].case) == "dense":
                continue
            at = break_even([e.case.density for e in line], [e.ratio or 0.0 for e in line])
            marks[series.name], highest[series.name] = at, line[0].case.density
            if at is not None and at < line[0].case.density:
                guides.append(Guide("break-even", at, f"{at:.2f}", series.colour))
        best = max(group, key=lambda e: e.ratio or 0.0)
        worst = min(group, key=lambda e: e.ratio or 0.0)
        over = " or ".join(dict.fromkeys(baseline_name(entry) for entry in group))
        precision = [best.case.dtype] if several_dtypes else []
        title = headline(best, several, *precision, setting(best.case))
        said = break_even_words(marks, highest)
        panels.append(
            Panel(
                "density",
                title,
                f"Speed-up over {over} against the share of weights kept, {title}. "
                f"Best: {pattern_name(best.case)}, {times(best.ratio or 0)}. "
                f"Worst: {pattern_name(worst.case)}, {times(worst.ratio or 0)}. "
                f"{said}",
                f"Over {over}. {said}",
                tags(best),
                [_density_point(entry, series) for series, line in lines.items() for entry in line],
                Table(
                    f"Speed-up by density, {title}",
                    (
                        *(Column("pattern", number=False), Column("weights kept", "%")),
                        *(Column("median", "ms"), Column("speed-up", "x")),
                        Column("95 % interval", "x", number=False),
                    ),
                    table_rows,
                ),
                guides,
            )
        )
    return panels


def _density_point(entry: Entry, series: Series) -> Point:
    low, high = entry.interval or (None, None)
    said = (
        f"{pattern_name(entry.case)}, {entry.case.density:.0%} kept: {short_ms(entry.ms)}, "
        f"{ratio_words(entry)}{noise_words(entry)}"
    )
    noisy = entry.case.noise != "quiet"
    return Point(entry.case.density, entry.ratio or 0.0, series, said, low, high, noisy=noisy)


def _density_row(entry: Entry) -> Row:
    return Row(
        [
            words(pattern_name(entry.case)),
            number(entry.case.density * 100, "{:.1f}"),
            number(entry.ms, "{:.3f}"),
            number(entry.ratio),
            interval_cell(entry),
        ]
    )


def interval_cell(entry: Entry) -> Cell:
    """The 95 % interval of the ratio, sorted by its lower end."""
    if entry.interval is None:
        return Cell("")
    low, high = entry.interval
    return Cell(f"{low:.2f} to {high:.2f}", low)


def break_even_words(marks: Mapping[str, float | None], highest: Mapping[str, float]) -> str:
    """Where families break even, and which never do, at the densities that were measured."""
    crossing = [
        f"{name} {at:.2f}" for name, at in marks.items() if at is not None and at < highest[name]
    ]
    faster = [name for name, at in marks.items() if at == highest[name]]
    slower = [name for name, at in marks.items() if at is None]
    parts = [f"Break-even density: {', '.join(crossing)}."] if crossing else []
    parts += [f"Faster at every density measured: {', '.join(faster)}."] if faster else []
    parts += [f"Slower at the lowest density measured: {', '.join(slower)}."] if slower else []
    return " ".join(parts)
