"""Puts the parts of the report into one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nmcompile.bench.report import summary
from nmcompile.bench.report.comparisons import accuracy_panels, scaling_panels, site_panels
from nmcompile.bench.report.data import Entry, find_entries, find_sites
from nmcompile.bench.report.layers import layer_panels
from nmcompile.bench.report.panels import Panel, density_panels
from nmcompile.bench.report.plots import alternative, draw
from nmcompile.bench.report.precisions import precisions_table
from nmcompile.bench.report.series import Palette, Series, legend
from nmcompile.bench.results import Run
from nmcompile.errors import InputError
from nmcompile.pages import render_page


@dataclass(frozen=True)
class Figure:
    """A panel and its drawings; hint tells what the keyboard does."""

    panel: Panel
    drawings: Sequence[str]
    hint: str


@dataclass(frozen=True)
class Section:
    """Plots of one kind.

    picked: one of them is shown at a time, chosen by its title.
    """

    name: str
    title: str
    lead: str
    legend: Sequence[Series]
    figures: Sequence[Figure]
    picked: bool = False


def render_report(runs: Sequence[Run], title: str = "") -> str:
    """The page, as HTML.

    Args:
        runs: in the order in which they are to stand; at least one.
        title: of the page; the labels of the runs where it is empty.

    Raises:
        InputError: there are no cases, or a library of the extra "bench" is missing.
    """
    sites = find_sites(runs)
    entries = find_entries(sites)
    if not entries:
        raise InputError(
            "the results hold no cases: expected at least one; measure again with nmc bench"
        )
    several = len(sites) > 1
    labels = list(dict.fromkeys(run.label for run in runs if run.label))
    tables = {
        "matrix": summary.matrix(entries, several),
        "precisions": precisions_table(entries, several),
        "latency": summary.latencies(entries, several),
        "files": summary.artifacts(entries, several),
        "problems": summary.problems(entries, several),
    }
    return render_page(
        __package__,
        "page",
        "bench",
        title=title or ", ".join(labels) or "Sparse CNN latency",
        finding=summary.finding(entries),
        whole=summary.whole(entries),
        scope=summary.scope(entries, sites),
        cards=summary.cards(sites),
        filters=_filters(entries),
        sections=_sections(entries, several),
        **tables,
    )


def _sections(entries: Sequence[Entry], several: bool) -> list[Section]:
    """The sections that the cases have data for."""
    palette = Palette(entries, list(dict.fromkeys(entry.site for entry in entries)))
    sections = []

    def add(
        name: str, title: str, lead: str, panels: Sequence[Panel], picked: bool = False
    ) -> None:
        if not panels:
            return
        series = (point.series for panel in panels for point in panel.points)
        figures = [Figure(panel, draw(panel), alternative(panel)) for panel in panels]
        sections.append(Section(name, title, lead, legend(series), figures, picked))

    add(
        *("density", "Speed-up over density"),
        "A ring marks the break-even: the density under which a pattern is faster than what it is "
        "compared with, interpolated in time. Bands are 95 % intervals.",
        density_panels(entries, palette, several),
    )
    add(
        *("threads", "Scaling over threads"),
        "Both axes are logarithmic: twice the images on twice the threads is a slope of one.",
        scaling_panels(entries, palette, several, "threads"),
    )
    add(
        *("batch", "Scaling over the batch"),
        "Time for one image of the batch; lower is faster.",
        scaling_panels(entries, palette, several, "batch"),
    )
    add(
        *("accuracy", "Latency against accuracy"),
        "The dotted line joins what nothing else beats in both.",
        accuracy_panels(entries, palette, several),
    )
    add(
        *("sites", "Machines and runs side by side"),
        "Median latency of the same case; left is faster.",
        site_panels(entries, palette),
    )
    add(
        *("layers", "Layers under the roofs"),
        "How fast each layer multiplies its non-zeros, under what the cores reach at best. The "
        "area of a mark is its share of the time; numbers mark what loses most. Winograd's method "
        "multiplies less than the weights ask for and may stand above a roof.",
        layer_panels(entries, several),
        picked=True,
    )
    return sections


def _filters(entries: Sequence[Entry]) -> list[tuple[str, str, list[str]]]:
    """What the page can be narrowed to: (tag, name, values), where there are two values or more."""
    found = [
        ("model", "model", dict.fromkeys(entry.case.model for entry in entries)),
        ("site", "machine or run", dict.fromkeys(entry.site.name for entry in entries)),
        ("threads", "threads", dict.fromkeys(_sorted(e.case.threads for e in entries))),
        ("batch", "batch", dict.fromkeys(_sorted(e.case.batch for e in entries))),
        ("precision", "precision", dict.fromkeys(e.case.dtype for e in entries)),
    ]
    return [(tag, name, list(values)) for tag, name, values in found if len(values) > 1]


def _sorted(numbers: Any) -> list[str]:
    return [str(number) for number in sorted(set(numbers))]
