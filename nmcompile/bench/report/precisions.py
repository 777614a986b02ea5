"""The table of patterns in several precisions."""

from __future__ import annotations

from collections.abc import Sequence

from nmcompile.bench.precisions import Line, lines_of, our_dtypes
from nmcompile.bench.report.data import Entry, engine_name, pattern_name
from nmcompile.bench.report.panels import grouped, mixed_tags
from nmcompile.bench.report.summary import varying
from nmcompile.bench.report.table import Cell, Column, Row, Table, number, words


def precisions_table(entries: Sequence[Entry], several: bool) -> Table | None:
    """A row per model, setting and pattern; None where we ran in one precision only."""
    dtypes = our_dtypes([entry.case for entry in entries])
    if len(dtypes) < 2:
        return None
    first, *others = dtypes
    varied, rows = varying(entries), []
    for site, here in grouped(entries, lambda e: e.site).items():
        tagged = {id(entry.case): mixed_tags(entry) for entry in here}
        for line in lines_of([entry.case for entry in here]):
            cells = [words(line.model), *([words(site.name)] if several else [])]
            cells += [number(getattr(line, name), "{:d}") for name in varied]
            cells += [words(pattern_name(line.any))]
            for dtype in dtypes:
                cells += _half(line, dtype)
            cells += [number(line.gain(dtype, first)) for dtype in others]
            rows.append(Row(cells, tagged[id(line.any)]))
    columns = [Column("model", number=False)]
    columns += [Column("machine or run", number=False)] if several else []
    columns += [Column(name) for name in varied] + [Column("pattern", number=False)]
    for dtype in dtypes:
        columns += [
            Column(f"dense {dtype}", number=False),
            *(Column("its median", "ms"), Column(f"ours {dtype}", "ms"), Column("speed-up", "x")),
        ]
    columns += [Column(f"ours, {dtype} over {first}", "x") for dtype in others]
    return Table(f"{' and '.join(dtypes)} side by side", columns, rows)


def _half(line: Line, dtype: str) -> list[Cell]:
    half = line.halves.get(dtype)
    if half is None:
        return [Cell("")] * 4
    peer = half.peer
    return [
        words("" if peer is None else engine_name(peer, dtype)),
        number(None if peer is None else peer.median_ms),
        number(half.ours.median_ms, tone="ours"),
        number(half.ratio),
    ]
