"""A result as Markdown, which also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.models import COMPILED, EAGER, OURS
from benchmarks.gpu.peers import CUDNN
from benchmarks.gpu.result import (
    INSTRUCTIONS,
    Result,
    Row,
    contender_ms,
    fastest,
    geometric_mean,
    peer_ms,
)

REASON = 160  # characters of a failure; the JSON has all of them
_VERDICTS: dict[bool | None, str] = {True: "yes", False: "NO", None: ""}


def render(result: Result) -> str:
    """All tables."""
    machine, roofs = result.machine, result.roofs
    lines = [f"# {machine['gpu']} ({machine['arch']})", ""]
    torch = machine["torch"] or f"no peers: {machine['torch_missing']}"
    lines += [f"driver for CUDA {machine['driver']}, Python {machine['python']}, torch {torch}"]
    source = "measured" if roofs.get("measured") else "tensor cores by the data sheet"
    if roofs:
        lines += [
            f"roofs ({source}): {roofs['flops'] / 1e12:.0f} TFLOP/s dense float16, "
            f"{roofs['bandwidth'] / 1e12:.2f} TB/s"
        ]
    document = result.document()
    lines += ["", "## Bars", "", *_bars(document["bars"])]
    lines += ["", "## Whole models", "", *_models(result)]
    for batch in sorted({row["batch"] for row in result.rows("layers")}, reverse=True):
        rows = [row for row in result.rows("layers") if row["batch"] == batch]
        lines += ["", f"## Layers, batch {batch}", "", *_layers(rows)]
    lines += ["", "## The analytical model's favourites against the fastest variants", ""]
    lines += _ranking(document["ranking"])
    failures = list(result.failures())
    if failures:
        lines += ["", "## Failures", ""]
        lines += table(
            ("part", "what", "why"), [(*words, why[:REASON]) for *words, why in failures]
        )
    lines += ["", "## Parts", ""]
    lines += table(
        ("part", "state", "seconds"),
        [(name, p["state"], f"{p['seconds']:.0f}") for name, p in result.parts.items()],
    )
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned Markdown; the first column to the left."""
    body = [[str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    cells = [list(head), *body]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    text = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join(
        "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)
    )
    return [text[0], rule + "|", *text[1:]]


def _bars(bars: Iterable[Row]) -> list[str]:
    rows = []
    for bar in bars:
        found = ""
        if bar.get("mean") is not None:
            found = f"{bar['mean']:.2f} ({bar['least']:.2f} to {bar['most']:.2f})"
        wanted = f"{bar['wanted']:g}" if "wanted" in bar else "all"
        rows.append((bar["bar"], wanted, found, f"{bar['met_by']} of {bar['of']}", bar["state"]))
    return table(("bar", "wanted", "mean and range", "met by", "state"), rows)


def _models(result: Result) -> list[str]:
    rows = []
    for kind in ("model", "compiled", "patterns"):
        for row in result.rows(kind):
            if "contenders" not in row:
                continue
            ours = contender_ms(row, OURS)
            cells = [f"{row['pattern']} b{row['batch']}", _ms(ours)]
            for name in (EAGER, COMPILED):
                theirs = contender_ms(row, name)
                cells += [_ms(theirs), _ratio(theirs, ours)]
            error = f"{row['error_norm']:.1e}" if "error_norm" in row else ""
            rows.append((*cells, error, _VERDICTS[row.get("correct")]))
    head = ("resnet50", "ours ms", "eager ms", "ratio", "compiled ms", "ratio", "error", "correct")
    return table(head, rows)


def _layers(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(p["name"] for row in rows for p in row["peers"]))
    peers = [name for name in names if name != CUDNN]
    methods = [m for m in INSTRUCTIONS if any(fastest(row, m) for row in rows)]
    head = ["layer", "times", "cuDNN ms", *(f"{peer} ms" for peer in peers)]
    head += [f"{INSTRUCTIONS[m]} ms" for m in methods]
    head += ["chosen ms", "fastest ours", "over cuDNN", "TFLOP/s", "of the roof", "exact"]
    cells = []
    ratios = []
    for row in rows:
        timed = [v for v in row["variants"] if "ms" in v]
        chosen: Any = next((v for v in timed if v["chosen"]), None)
        best: Any = min(timed, key=lambda v: float(v["ms"]), default=None)
        theirs = peer_ms(row, CUDNN)
        if best is not None and theirs is not None:
            ratios.append(theirs / best["ms"])
        line = [row["layer"], str(row["count"]), _ms(theirs)]
        line += [_ms(peer_ms(row, peer)) for peer in peers]
        for method in methods:
            found = fastest(row, method)
            line.append(_ms(None if found is None else found["ms"]))
        line += [
            _ms(None if chosen is None else chosen["ms"]),
            "" if best is None else best["name"],
        ]
        line += [_ratio(theirs, None if best is None else best["ms"])]
        line += ["", ""] if best is None else [f"{best['tflops']:.0f}", f"{best['roof_share']:.0%}"]
        line.append(f"{sum(v['exact'] for v in row['variants'])} of {len(row['variants'])}")
        cells.append(line)
    lines = table(head, cells)
    if ratios:
        lines += ["", f"Geometric mean over cuDNN: {geometric_mean(ratios):.2f}"]
    return lines


def _ranking(rows: Iterable[Row]) -> list[str]:
    head = ("method", "batch", "layers", "mean loss", "largest loss", "layer")
    return table(
        head,
        [
            (
                *(INSTRUCTIONS.get(row["method"], "all"), str(row["batch"]), str(row["layers"])),
                *(f"{row['mean_loss']:.2f}", f"{row['largest_loss']:.2f}", row["worst_layer"]),
            )
            for row in rows
        ],
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _ratio(theirs: float | None, ours: float | None) -> str:
    return "" if theirs is None or ours is None else f"{theirs / ours:.2f}"
