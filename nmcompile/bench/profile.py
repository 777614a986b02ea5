"""The layers of a profile against the machine's roofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nmcompile.bench.results import LayerRow, Roofs

if TYPE_CHECKING:
    from nmcompile.runtime import LayerTime


def roof_of(roofs: Roofs, kind: str, threads: int) -> float | None:
    """GFLOP/s of a roof on `threads` cores, taken to be equally fast; None if it is not known."""
    known: float | None = getattr(roofs, kind)
    return None if known is None else known * threads


def layer_rows(
    times: Sequence[LayerTime],
    layers: Sequence[Mapping[str, Any]],
    roofs: Roofs | None,
    threads: int,
) -> list[LayerRow]:
    """Time and rates of every layer; rates are None where the manifest has no such layer.

    Calls of one kernel for one layer count together: early layers run a batch in several.

    `roof_share` is the share of the roof that the non-zero work reaches, above 1 where Winograd's
    method multiplies less; all that concerns roofs is None where they are.
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
        roof = roof_of(roofs, kind, threads) if kind is not None and roofs is not None else None
        rows.append(
            LayerRow(
                layer=call.layer,
                symbol=call.symbol,
                pattern=layer.get("pattern"),
                density=layer.get("density"),
                ms=call.ms,
                nonzero_gflops=nonzero / call.ms * 1e-6 if rated else None,
                dense_equivalent_gflops=flops / call.ms * 1e-6 if rated else None,
                roof=kind,
                roof_share=nonzero / call.ms * 1e-6 / roof if roof else None,
                lost_ms=call.ms - nonzero / roof * 1e-6 if roof else None,
            )
        )
    return rows
