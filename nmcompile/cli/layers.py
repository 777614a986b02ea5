"""The layers of a profile against the machine's roofs: rows, table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nmcompile.cli.figures import GROUND, INK, load_pyplot, save_figure
from nmcompile.cli.output import print_table

if TYPE_CHECKING:
    from nmcompile.roofs import Roofs
    from nmcompile.runtime import LayerTime

ROOF_NAMES = {"fma": "FMA", "load": "L1 load"}
COLOURS = {"fma": "#1f6feb", "load": "#bc4c00"}
LABELS = 5  # layers named in the picture: those that lose most time


def layer_rows(
    times: Sequence[LayerTime],
    layers: Sequence[Mapping[str, Any]],
    roofs: Roofs,
    threads: int,
) -> list[dict[str, Any]]:
    """Time and rates of every layer; rates are None where the manifest has no such layer.

    Calls of one kernel for one layer count together: early layers run a batch in several.

    `roof` names what bounds the kernel, "fma" or "load"; `roof_share` is the share of it that the
    non-zero work reaches, above 1 where Winograd's method multiplies less; `lost_ms` is the time
    above what that work would take at the roof.
    """
    from nmcompile.kernels.catalog import find_row

    known = {layer.get("name"): layer for layer in layers}
    together: dict[tuple[str, str], LayerTime] = {}
    for call in times:
        key = (call.layer, call.symbol)
        before = together[key].ms if key in together else 0.0
        together[key] = replace(call, ms=before + call.ms)
    rows = []
    for call in together.values():
        layer = known.get(call.layer, {})
        flops = 2.0 * layer.get("macs", 0)
        nonzero = flops * layer.get("density", 1.0)
        kernel = find_row(call.symbol)
        rated = bool(flops and call.ms)
        kind = kernel.roof if kernel is not None and rated else None
        roof = roofs.of(kind, threads) if kind is not None else None
        rows.append(
            {
                "layer": call.layer,
                "symbol": call.symbol,
                "pattern": layer.get("pattern"),
                "density": layer.get("density"),
                "ms": call.ms,
                "nonzero_gflops": nonzero / call.ms * 1e-6 if rated else None,
                "dense_equivalent_gflops": flops / call.ms * 1e-6 if rated else None,
                "roof": kind,
                "roof_share": nonzero / call.ms * 1e-6 / roof if roof else None,
                "lost_ms": call.ms - nonzero / roof * 1e-6 if roof else None,
            }
        )
    return rows


def print_layer_times(rows: Sequence[Mapping[str, Any]], roofs: Roofs, threads: int) -> None:
    """Print the profile, and the layer that loses most."""
    total = sum(row["ms"] for row in rows) or 1.0
    print_table(
        "",
        (
            *("layer", "kernel", "pattern", "ms", "share", "non-zero GFLOP/s"),
            *("dense-equivalent", "of the roof", "roof"),
        ),
        [
            (
                row["layer"],
                row["symbol"],
                row["pattern"] or "",
                f"{row['ms']:.4f}",
                f"{row['ms'] / total:.1%}",
                _text(row["nonzero_gflops"], "{:.1f}"),
                _text(row["dense_equivalent_gflops"], "{:.1f}"),
                _text(row["roof_share"], "{:.0%}"),
                ROOF_NAMES.get(row["roof"] or "", ""),
            )
            for row in rows
        ],
        right=(3, 4, 5, 6, 7),
    )
    each = f" x {threads} threads" if threads > 1 else ""
    typer.echo(
        f"roofs of this machine: FMA {roofs.fma:.0f}{each}, L1 load {roofs.load:.0f}{each} GFLOP/s"
    )
    rated = _slowest(rows)
    if rated:
        worst = rated[0]
        typer.echo(
            f"furthest from its roof: {worst['layer']}, {worst['lost_ms']:.3f} ms of "
            f"{worst['ms']:.3f} above the time at the roof"
        )


def plot_layers(
    rows: Sequence[Mapping[str, Any]], roofs: Roofs, threads: int, title: str, path: Path
) -> None:
    """Draw each layer's non-zero rate under the roofs; the area of a mark is the layer's time.

    Raises:
        InputError: matplotlib is missing.
        ArtifactError: the picture cannot be written.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4.8), layout="constrained", facecolor=GROUND)
    axes.set_facecolor(GROUND)
    total = sum(row["ms"] for row in rows) or 1.0
    for kind, colour in COLOURS.items():
        height = roofs.of(kind, threads)  # type: ignore[arg-type]
        name = ROOF_NAMES[kind]
        axes.axhline(height, color=colour, linestyle="--", linewidth=1)
        own = [(index, row) for index, row in enumerate(rows, 1) if row["roof"] == kind]
        axes.scatter(
            [index for index, _ in own],
            [row["nonzero_gflops"] for _, row in own],
            [20 + 3000 * row["ms"] / total for _, row in own],
            color=colour,
            alpha=0.65,
            label=f"bound by {name} ({height:.0f} GFLOP/s)",
        )
    places = {id(row): index for index, row in enumerate(rows, 1)}
    # Numbers, because the names of neighbours would overlap.
    slowest = _slowest(rows)[:LABELS]
    for number, row in enumerate(slowest, 1):
        at = (places[id(row)], row["nonzero_gflops"])
        axes.annotate(
            str(number), at, ha="center", va="center", fontsize=7, color=INK, fontweight="bold"
        )
    named = [f"{i}  {row['layer']}: {row['lost_ms']:.2f} ms" for i, row in enumerate(slowest, 1)]
    axes.text(
        *(0.5, 0.03, "\n".join(["time above the roof", *named])),
        transform=axes.transAxes,
        ha="left",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    # Winograd's method stands above the roofs: it multiplies less than the weights ask for.
    highest = [roofs.fma * threads, *(row["nonzero_gflops"] or 0.0 for row in rows)]
    axes.set_ylim(0, max(highest) * 1.08)
    axes.set_xlabel("kernel call, in order of execution (area: time)")
    axes.set_ylabel("non-zero GFLOP/s")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(loc="lower left", frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    save_figure(figure, path)


def _slowest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rated rows, the one that loses most time first."""
    rated = [row for row in rows if row["lost_ms"] is not None]
    return sorted(rated, key=lambda row: -row["lost_ms"])


def _text(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)
