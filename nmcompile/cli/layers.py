"""The layers of a profile against the machine's roofs: table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmcompile.cli.figures import GROUND, INK, load_pyplot, save_figure
from nmcompile.cli.output import print_table
from nmcompile.cli.printing import say

if TYPE_CHECKING:
    from nmcompile.bench.results import LayerRow, Roofs

ROOF_NAMES = {
    "fma": "FMA", "load": "L1 load", "vnni": "VNNI", "bf16": "BF16",
    "amx_int8": "AMX int8", "amx_bf16": "AMX bfloat16",
}  # fmt: skip
COLOURS = {
    "fma": "#1f6feb", "load": "#bc4c00", "vnni": "#8250df", "bf16": "#0e7c91",
    "amx_int8": "#0d8a6a", "amx_bf16": "#b0307f",
}  # fmt: skip
OF_FLOATS = ("fma", "load")
LABELS = 5  # layers named in the picture: those that lose most time


def print_layer_times(rows: Sequence[LayerRow], roofs: Roofs | None, threads: int) -> None:
    """Print the profile, and the layer that loses most; without roofs only the times."""
    total = sum(row.ms for row in rows) or 1.0
    print_table(
        "",
        (
            *("layer", "kernel", "pattern", "ms", "share", "non-zero GFLOP/s"),
            *("dense-equivalent", "of the roof", "roof"),
        ),
        [
            (
                row.layer,
                row.symbol,
                row.pattern or "",
                f"{row.ms:.4f}",
                f"{row.ms / total:.1%}",
                _text(row.nonzero_gflops, "{:.1f}"),
                _text(row.dense_equivalent_gflops, "{:.1f}"),
                _text(row.roof_share, "{:.0%}"),
                ROOF_NAMES.get(row.roof or "", ""),
            )
            for row in rows
        ],
        right=(3, 4, 5, 6, 7),
        spare=(6, 5, 4, 8),
    )
    if roofs is None or not any(row.roof for row in rows):
        return  # a GPU's layers are under no roof that was measured
    each = f" x {threads} threads" if threads > 1 else ""
    known = {kind: getattr(roofs, kind) for kind in ROOF_NAMES}
    named = [f"{ROOF_NAMES[k]} {v:.0f}{each}" for k, v in known.items() if v is not None]
    say(f"roofs of the machine: {', '.join(named)} GFLOP/s")
    rated = _slowest(rows)
    if rated:
        worst = rated[0]
        say(
            f"furthest from its roof: {worst.layer}, {worst.lost_ms:.3f} ms of "
            f"{worst.ms:.3f} above the time at the roof"
        )


def plot_layers(
    rows: Sequence[LayerRow], roofs: Roofs, threads: int, title: str, path: Path
) -> None:
    """Draw each layer's non-zero rate under the roofs; the area of a mark is the layer's time.

    Raises:
        InputError: matplotlib is missing.
        ArtifactError: the picture cannot be written.
    """
    from nmcompile.bench.profile import roof_of

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4.8), layout="constrained", facecolor=GROUND)
    axes.set_facecolor(GROUND)
    total = sum(row.ms for row in rows) or 1.0
    for kind, colour in COLOURS.items():
        height = roof_of(roofs, kind, threads)
        own = [(index, row) for index, row in enumerate(rows, 1) if row.roof == kind]
        # The other roofs are far above what bounds a float32 model, and would flatten it.
        if height is None or (kind not in OF_FLOATS and not own):
            continue
        name = ROOF_NAMES[kind]
        axes.axhline(height, color=colour, linestyle="--", linewidth=1)
        axes.scatter(
            [index for index, _ in own],
            [row.nonzero_gflops for _, row in own],
            [20 + 3000 * row.ms / total for _, row in own],
            color=colour,
            alpha=0.65,
            label=f"bound by {name} ({height:.0f} GFLOP/s)",
        )
    places = {id(row): index for index, row in enumerate(rows, 1)}
    # Numbers, because the names of neighbours would overlap.
    slowest = _slowest(rows)[:LABELS]
    for number, row in enumerate(slowest, 1):
        at = (places[id(row)], row.nonzero_gflops)
        axes.annotate(
            str(number), at, ha="center", va="center", fontsize=7, color=INK, fontweight="bold"
        )
    named = [f"{i}  {row.layer}: {row.lost_ms:.2f} ms" for i, row in enumerate(slowest, 1)]
    axes.text(
        *(0.5, 0.03, "\n".join(["time above the roof", *named])),
        transform=axes.transAxes,
        ha="left",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    # Winograd's method stands above the roofs: it multiplies less than the weights ask for.
    bounds = {row.roof for row in rows if row.roof is not None} | {"fma"}
    highest = [roof_of(roofs, kind, threads) or 0.0 for kind in bounds]
    highest += [row.nonzero_gflops or 0.0 for row in rows]
    axes.set_ylim(0, max(highest) * 1.08)
    axes.set_xlabel("kernel call, in order of execution (area: time)")
    axes.set_ylabel("non-zero GFLOP/s")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(loc="lower left", frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    save_figure(figure, path)


def _slowest(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The rated rows, the one that loses most time first."""
    rated = [row for row in rows if row.lost_ms is not None]
    return sorted(rated, key=lambda row: -(row.lost_ms or 0.0))


def _text(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)
