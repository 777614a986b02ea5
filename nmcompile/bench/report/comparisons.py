"""Plots that compare: over threads and batch, with accuracy, and between machines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nmcompile.bench.report.data import Entry, engine_name, pattern_name, setting
from nmcompile.bench.report.panels import (
    Panel,
    Point,
    grouped,
    headline,
    mixed_tags,
    noise_words,
    ratio_words,
    tags,
)
from nmcompile.bench.report.series import Palette, Series
from nmcompile.bench.report.table import Column, Row, Table, number, short_ms, times, words


def scaling_panels(
    entries: Sequence[Entry], palette: Palette, several: bool, over: str
) -> list[Panel]:
    """Throughput over "threads", or time per image over "batch", where there are two or more."""
    by_threads = over == "threads"
    panels = []
    measured = [entry for entry in entries if entry.measured]
    kept = "batch" if by_threads else "threads"
    for group in grouped(measured, lambda e: (e.site, e.case.model, tags(e)[kept])).values():
        lines = grouped(group, lambda e: palette.of_case(e.case))
        lines = {s: sorted(line, key=lambda e: getattr(e.case, over)) for s, line in lines.items()}
        gains = {}  # of the largest over the smallest
        for series, line in lines.items():
            if len({getattr(e.case, over) for e in line}) > 1:
                gains[series.name] = line[0].image_ms / line[-1].image_ms
        if not gains:
            continue
        first, case = group[0], group[0].case
        fixed = f"batch {case.batch}" if by_threads else setting(case).partition(",")[0]
        title = headline(first, several, fixed)
        ends = sorted({getattr(entry.case, over) for entry in group})
        best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
        span = f"From {ends[0]} to {ends[-1]} threads" if by_threads else f"Up to batch {ends[-1]}"
        note = (
            f"{span}, images per second grow most with {best} ({times(gains[best])}) and least "
            f"with {worst} ({times(gains[worst])})."
        )
        what = "Images per second over threads" if by_threads else "Time per image over batch"
        panels.append(
            Panel(
                over,
                title,
                f"{what}, {title}. {note}",
                note,
                {key: value for key, value in mixed_tags(first).items() if key != over},
                [
                    _scaling_point(entry, series, by_threads)
                    for series, line in lines.items()
                    for entry in line
                ],
                Table(
                    f"{what}, {title}",
                    (
                        *(Column("pattern or engine", number=False), Column(over)),
                        *(Column("median", "ms"), Column("per image", "ms")),
                        *(Column("throughput", "images/s"), Column(f"over {ends[0]}", "x")),
                    ),
                    [
                        _scaling_row(entry, line[0], series.name, over)
                        for series, line in lines.items()
                        for entry in line
                    ],
                ),
            )
        )
    return panels


def _scaling_point(entry: Entry, series: Series, by_threads: bool) -> Point:
    rate = 1e3 / entry.image_ms
    return Point(
        entry.case.threads if by_threads else entry.case.batch,
        rate if by_threads else entry.image_ms,
        series,
        f"{series.name}, {setting(entry.case)}: {short_ms(entry.image_ms)} per image, "
        f"{rate:.3g} images per second{noise_words(entry)}",
        noisy=entry.case.noise != "quiet",
    )


def _scaling_row(entry: Entry, first: Entry, name: str, over: str) -> Row:
    return Row(
        [
            words(name),
            number(getattr(entry.case, over), "{:d}"),
            number(entry.ms, "{:.3f}"),
            number(entry.image_ms, "{:.3f}"),
            number(1e3 / entry.image_ms, "{:.1f}"),
            number(first.image_ms / entry.image_ms),
        ]
    )


def accuracy_panels(entries: Sequence[Entry], palette: Palette, several: bool) -> list[Panel]:
    """Top-1 over latency, where samples had labels."""
    labelled = [e for e in entries if e.measured and _top1(e) is not None]
    panels = []
    for group in grouped(labelled, lambda e: (e.site, e.case.model, setting(e.case))).values():
        if len({(entry.case.pattern, entry.case.engine) for entry in group}) < 2:
            continue
        front = pareto(group)
        title = headline(group[0], several, setting(group[0].case))
        fastest = min(group, key=lambda e: e.image_ms)
        best = max(group, key=lambda e: _top1(e) or 0.0)
        names = [f"{_name(e)} ({short_ms(e.image_ms)}, {_top1(e) or 0:.1%})" for e in front]
        note = f"Nothing is both faster and more accurate than {'; '.join(names)}."
        panels.append(
            Panel(
                "accuracy",
                title,
                f"Accuracy against latency, {title}. Fastest: {_name(fastest)}, "
                f"{short_ms(fastest.image_ms)} per image at {_top1(fastest) or 0:.1%}. "
                f"Most accurate: {_name(best)}, {_top1(best) or 0:.1%} at "
                f"{short_ms(best.image_ms)}. {note}",
                note,
                mixed_tags(group[0]),
                [
                    Point(
                        entry.image_ms,
                        (_top1(entry) or 0.0) * 100,
                        palette.of_case(entry.case),
                        f"{_name(entry)}: {short_ms(entry.image_ms)} per image, "
                        f"top-1 {_top1(entry) or 0:.1%}{noise_words(entry)}",
                        noisy=entry.case.noise != "quiet",
                        label="front" if entry in front else "",
                    )
                    for entry in group
                ],
                Table(
                    f"Accuracy and latency, {title}",
                    (
                        *(Column("pattern or engine", number=False), Column("per image", "ms")),
                        *(Column("top-1", "%"), Column("same top-1 as reference", "%")),
                        *(Column("largest error", "of the range"), Column("samples")),
                    ),
                    [_accuracy_row(entry) for entry in group],
                ),
            )
        )
    return panels


def pareto(entries: Sequence[Entry]) -> list[Entry]:
    """Those than which none is both faster and more accurate, the fastest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.image_ms, -(_top1(e) or 0.0))):
        if not front or (_top1(entry) or 0.0) > (_top1(front[-1]) or 0.0):
            front.append(entry)
    return front


def _accuracy_row(entry: Entry) -> Row:
    found = entry.case.accuracy
    assert found is not None
    return Row(
        [
            words(_name(entry)),
            number(entry.image_ms, "{:.3f}"),
            number((found.top1 or 0.0) * 100, "{:.2f}"),
            number(found.same_top1 * 100, "{:.2f}"),
            number(found.max_error, "{:.1e}"),
            number(found.samples, "{:d}"),
        ]
    )


def _top1(entry: Entry) -> float | None:
    return entry.case.accuracy.top1 if entry.case.accuracy is not None else None


def _name(entry: Entry) -> str:
    if not entry.ours:
        return engine_name(entry.case)
    said = entry.case.dtype == "float32"
    return pattern_name(entry.case) + ("" if said else f", {entry.case.dtype}")


def site_panels(entries: Sequence[Entry], palette: Palette) -> list[Panel]:
    """The same cases on several machines or in several runs, one panel per model and setting."""
    measured = [entry for entry in entries if entry.measured]
    panels = []
    for group in grouped(measured, lambda e: (e.case.model, setting(e.case))).values():
        # Device and target belong to the site: the same case on a GPU is still to be compared.
        cases = grouped(group, lambda e: palette.of_case(e.case).name)
        cases = {name: same for name, same in cases.items() if len({e.site for e in same}) > 1}
        if not cases:
            continue
        shown = list(itertools.chain.from_iterable(cases.values()))
        ratios = {  # slowest over fastest
            name: max(e.ms for e in same) / min(e.ms for e in same) for name, same in cases.items()
        }
        widest, fastest = max(ratios, key=ratios.__getitem__), min(shown, key=lambda e: e.ms)
        title = f"{fastest.case.model}, {setting(fastest.case)}"
        note = (
            f"Fastest: {_name(fastest)} on {fastest.site.name}, {short_ms(fastest.ms)}. "
            f"Furthest apart: {widest}, {times(ratios[widest])}."
        )
        sites = list(dict.fromkeys(entry.site for entry in shown))
        table_rows = []
        for name, same in cases.items():
            by_site = {entry.site: entry for entry in same}
            first = by_site[min(by_site, key=lambda site: site.index)]
            cells = [words(name)]
            for place, site in enumerate(sites):
                here = by_site.get(site)
                cells.append(number(here.ms if here else None, "{:.3f}"))
                if place:
                    cells.append(number(first.ms / here.ms if here else None))
            table_rows.append(Row(cells))
        heads = [(Column(site.name, "ms"), Column("speed-up", "x")) for site in sites]
        where = {key: value for key, value in mixed_tags(fastest).items() if key != "site"}
        panels.append(
            Panel(
                "sites",
                title,
                f"Median latency of the same cases on {len(sites)} machines or runs, {title}. "
                f"{note}",
                note,
                where,
                [
                    Point(
                        entry.ms,
                        name,
                        palette.of_site(entry.site),
                        f"{name} on {entry.site.name}: {short_ms(entry.ms)}"
                        f"{', ' * bool(entry.ratio)}{ratio_words(entry)}{noise_words(entry)}",
                        noisy=entry.case.noise != "quiet",
                    )
                    for name, same in cases.items()
                    for entry in same
                ],
                Table(
                    f"The same cases side by side, {title}",
                    (
                        Column("pattern or engine", number=False),
                        # The first is what the others are held against.
                        *[head for pair in heads for head in pair if head is not heads[0][1]],
                    ),
                    table_rows,
                ),
            )
        )
    return panels
