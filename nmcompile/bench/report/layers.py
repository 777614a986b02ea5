"""The layers of a case under the machine's roofs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nmcompile.bench.profile import roof_of
from nmcompile.bench.report.data import Entry, pattern_name, setting
from nmcompile.bench.report.panels import Guide, Panel, Point, headline, tags
from nmcompile.bench.report.series import Series
from nmcompile.bench.report.table import Column, Row, Table, number, short_ms, words
from nmcompile.bench.results import LayerRow

WORST: Final = 5  # layers named
ROOFS: Final = {
    "fma": Series("bound by multiply-adds", "--s0"),
    "load": Series("bound by loads from L1", "--s3", "square"),
    "vnni": Series("bound by products of bytes", "--s2", "triangle-up"),
    "bf16": Series("bound by products of bfloat16", "--s5", "square"),
    "amx_int8": Series("bound by tiles of bytes", "--s1", "triangle-up"),
    "amx_bf16": Series("bound by tiles of bfloat16", "--s4", "square"),
}
NAMES: Final = {
    "fma": "multiply-adds",
    "load": "loads from L1",
    "vnni": "products of bytes",
    "bf16": "products of bfloat16",
    "amx_int8": "tiles of bytes",
    "amx_bf16": "tiles of bfloat16",
}
OTHER: Final = Series("no roof known", "--dense", "diamond")


def layer_panels(entries: Sequence[Entry], several: bool) -> list[Panel]:
    """One panel per case that was profiled and whose layers have rates."""
    return [
        _panel(entry, several)
        for entry in entries
        if any(layer.nonzero_gflops is not None for layer in entry.case.layers)
    ]


def _panel(entry: Entry, several: bool) -> Panel:
    case, roofs = entry.case, entry.site.roofs
    total = sum(layer.ms for layer in case.layers) or 1.0
    longest = max(layer.ms for layer in case.layers) or 1.0
    losers = sorted(
        (layer for layer in case.layers if layer.lost_ms is not None and layer.lost_ms > 0),
        key=lambda layer: -(layer.lost_ms or 0.0),
    )[:WORST]
    places = {id(layer): str(place) for place, layer in enumerate(losers, 1)}
    precision = [case.dtype] if case.dtype != "float32" else []
    title = headline(entry, several, pattern_name(case), *precision, setting(case))
    guides = []
    if roofs is not None:
        for kind, name in NAMES.items():
            at = roof_of(roofs, kind, case.threads)
            # A roof that bounds no layer would only stretch the axis.
            if at is not None and any(layer.roof == kind for layer in case.layers):
                guides.append(Guide("y", at, f"{name}: {at:.0f} GFLOP/s", ROOFS[kind].colour))
    named = [
        f"{place} {layer.layer} ({short_ms(layer.lost_ms or 0.0)} of {short_ms(layer.ms)})"
        for place, layer in enumerate(losers, 1)
    ]
    roof_words = "; ".join(guide.name for guide in guides)
    worst = f"Most time above the roof: {'; '.join(named)}." if named else "No layer loses time."
    return Panel(
        "layers",
        title,
        f"Non-zero GFLOP/s of {len(case.layers)} layers in the order in which they run, {title}. "
        f"{f'Roofs: {roof_words}. ' if guides else ''}{worst}",
        worst,
        tags(entry),
        [
            Point(
                place,
                layer.nonzero_gflops,
                ROOFS.get(layer.roof or "", OTHER),
                _said(layer, total),
                size=layer.ms / total,
                label=places.get(id(layer), ""),
            )
            for place, layer in enumerate(case.layers, 1)
            if layer.nonzero_gflops is not None
        ],
        Table(
            f"Layers of {title}",
            (
                *(Column("layer", number=False), Column("kernel", number=False)),
                *(Column("pattern", number=False), Column("time", "ms"), Column("share", "%")),
                *(Column("non-zero", "GFLOP/s"), Column("dense-equivalent", "GFLOP/s")),
                *(Column("of the roof", "%"), Column("above it", "ms")),
            ),
            [_row(layer, total, longest) for layer in case.layers],
        ),
        guides,
    )


def _said(layer: LayerRow, total: float) -> str:
    parts = [
        f"{layer.layer}{f', {layer.pattern}' if layer.pattern else ''}: {short_ms(layer.ms)}, "
        f"{layer.ms / total:.1%} of the time",
        f"{layer.nonzero_gflops:.0f} non-zero GFLOP/s",
    ]
    if layer.roof_share is not None:
        parts.append(f"{layer.roof_share:.0%} of the roof")
    if layer.lost_ms is not None and layer.lost_ms > 0:
        parts.append(f"{short_ms(layer.lost_ms)} above it")
    return ", ".join(parts)


def _row(layer: LayerRow, total: float, longest: float) -> Row:
    share = None if layer.roof_share is None else layer.roof_share * 100
    return Row(
        [
            words(layer.layer),
            words(layer.symbol),
            words(layer.pattern or ""),
            number(layer.ms, "{:.4f}"),
            number(layer.ms / total * 100, "{:.1f}", bar=layer.ms / longest),
            number(layer.nonzero_gflops, "{:.1f}"),
            number(layer.dense_equivalent_gflops, "{:.1f}"),
            number(share, "{:.0f}"),
            number(layer.lost_ms, "{:.4f}"),
        ]
    )
