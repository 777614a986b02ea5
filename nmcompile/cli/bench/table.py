"""The result of `nmc bench`, for people and for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile.cli.layers import plot_layers, print_layer_times
from nmcompile.cli.output import print_json, print_table
from nmcompile.cli.printing import say
from nmcompile.errors import InputError

if TYPE_CHECKING:
    from nmcompile.bench.results import Case, Run


def case_row(case: "Case", group: Sequence["Case"]) -> dict[str, Any]:
    """What is known about a case, in plain types; `speedup` is of ours, over its baseline."""
    from nmcompile.bench.baselines import baseline_of, speedup

    baseline = baseline_of(case, group)
    ratio, accuracy, times = speedup(case, baseline), case.accuracy, case.samples_ms
    return {
        "model": case.model,
        "batch": case.batch,
        "threads": case.threads,
        "engine": case.engine,
        "version": case.engine_version,
        "pattern": case.pattern,
        "density": case.density,
        "target": case.target,
        "dtype": case.dtype,
        "rounds": len(times),
        "median_ms": case.median_ms,
        "min_ms": min(times, default=None),
        "max_ms": max(times, default=None),
        "over": _title(baseline) if baseline is not None and ratio is not None else None,
        "speedup": ratio.value if ratio else None,
        "speedup_low": ratio.low if ratio else None,
        "speedup_high": ratio.high if ratio else None,
        "noise": case.noise,
        "noise_reason": case.noise_reason,
        "reference": accuracy.reference if accuracy else None,
        "difference": accuracy.max_error if accuracy else None,
        "same_top1": accuracy.same_top1 if accuracy else None,
        "top1": accuracy.top1 if accuracy else None,
        "error": case.error,
    }


def all_rows(run: "Run") -> list[dict[str, Any]]:
    """One row per case, in the order of the file."""
    from nmcompile.bench.baselines import groups_of

    return [case_row(case, group) for group in groups_of(run.cases).values() for case in group]


def print_document(run: "Run", path: Path, layers: bool) -> None:
    """Print the rows as JSON; the file has every sample."""
    import msgspec

    document: dict[str, Any] = {
        "output": str(path),
        "complete": run.complete,
        "cases": all_rows(run),
    }
    if layers:
        document["roofs"] = msgspec.to_builtins(run.roofs)
        document["device_roofs"] = msgspec.to_builtins(run.device_roofs)
        for row, case in zip(document["cases"], _ordered(run), strict=True):
            row["layers"] = msgspec.to_builtins(case.layers)
    print_json(document)


def print_run(run: "Run") -> None:
    """Print one table per group."""
    from nmcompile.bench.baselines import groups_of

    for name, group in groups_of(run.cases).items():
        rows = [case_row(case, group) for case in group if case.samples_ms]
        if not rows:
            continue
        labelled = any(row["top1"] is not None for row in rows)
        columns = ["engine", "pattern", "density", "median ms", "min ms", "speed-up"]
        columns += ["95 % interval", "over", "difference / range", "same top-1", "noise"]
        if labelled:
            columns.insert(-1, "top-1")
        print_table(
            name,
            columns,
            [_cells(row, labelled) for row in rows],
            right=(2, 3, 4, 5, 8, *range(9, len(columns) - 1)),
            spare=(9, 8, 4, 2, 6),
        )
        for note in dict.fromkeys(_note(row) for row in rows if row["noise_reason"]):
            say(f"note: {note}")


def print_profiles(run: "Run") -> None:
    """Print the layers of all our cases."""
    for case in _profiled(run):
        say(f"layers of {case.group}, {_title(case)}")
        print_layer_times(case.layers, run.roofs_of(case.device), case.threads)


def plot_profile(run: "Run", path: Path) -> None:
    """Draw the layers of the first of our cases.

    Raises:
        InputError: there is none, or the roofs of its machine are not known.
        ArtifactError: the picture cannot be written.
    """
    cases = [case for case in _profiled(run) if any(layer.roof for layer in case.layers)]
    case = next(iter(cases), None)
    roofs = run.roofs_of(case.device) if case is not None else None
    if case is None or roofs is None:
        raise InputError(
            "--plot draws a compiled model's layers under its CPU's roofs: expected a case of "
            "nmcompile that was measured on one, found none; --layers has the times on a GPU"
        )
    plot_layers(case.layers, roofs, case.threads, case.group, path)


def _profiled(run: "Run") -> list["Case"]:
    return [case for case in _ordered(run) if case.layers]


def _ordered(run: "Run") -> list["Case"]:
    from nmcompile.bench.baselines import groups_of

    return [case for group in groups_of(run.cases).values() for case in group]


def _title(case: "Case") -> str:
    from nmcompile.bench.report.data import engine_name

    return f"{engine_name(case)} {case.pattern}".strip()


def _cells(row: Mapping[str, Any], labelled: bool) -> list[str]:
    # Other engines' names say their precision; ours has that of the target.
    precision = row["dtype"] if row["target"] and row["dtype"] != "float32" else ""
    cells = [
        " ".join(word for word in (row["engine"], row["version"], precision) if word),
        row["pattern"] or "as it is",
        f"{row['density']:.3f}",
        f"{row['median_ms']:.3f}",
        f"{row['min_ms']:.3f}",
        _text(row["speedup"], "{:.2f}x"),
        _interval(row),
        row["over"] or "",
        _text(row["difference"], "{:.1e}"),
        _text(row["same_top1"], "{:.1%}"),
        row["noise"],
    ]
    if labelled:
        cells.insert(-1, _text(row["top1"], "{:.1%}"))
    return cells


def _note(row: Mapping[str, Any]) -> str:
    """Why a case is noisy; a busy machine concerns all of them alike."""
    who = f"{row['engine']} {row['pattern']}".strip()
    return f"{who}: {row['noise_reason']}" if row["noise"] != "busy" else row["noise_reason"]


def _interval(row: Mapping[str, Any]) -> str:
    from nmcompile.bench.noise import FEW

    if row["speedup"] is None:
        return ""
    if row["rounds"] < FEW:
        return f"of {row['rounds']} rounds: none"
    return f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f}"


def _text(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)
