"""Scores of the accuracy benchmarks, and tables, sentences and the picture of `accuracy_digits`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.recipes import BY_AUTHORS
from nmcompile.runtime.files import replace_file

RESULTS = Path(__file__).parent / "results" / "accuracy.json"

NUMBERS = (
    *("accuracy", "in int8", "latency", "in int8", "artifact", "in int8"),
    *("same prediction", "in int8", "error"),
)

# What the papers report at equal sparsity: the first is at least as good as the second.
ORDERINGS = (
    ("SR-STE", "ASP, one-shot"),
    ("LBC", "SR-STE"),
    ("SpRe over SR-STE", "SR-STE"),
    ("SpRe over LBC", "LBC"),
    ("SpRe over ASP", "ASP, one-shot"),
    ("unstructured, one-shot", "ASP, one-shot"),
    ("SUBP", "1xN, one-shot"),
    ("SUBP by BPAR", "SUBP"),
    ("SUBP by BPAR", "SUBP by L2"),
    ("1xN rearranged, one-shot", "1xN, one-shot"),
)


@dataclass(frozen=True)
class Score:
    """One method at one sparsity.

    accuracies: share of the test images, one per seed.
    """

    method: str
    pattern: str
    density: float
    accuracies: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds."""
        return _deviation(self.accuracies)

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.deviation / math.sqrt(len(self.accuracies))


@dataclass(frozen=True)
class Row(Score):
    """One method at one sparsity, compiled.

    int8: share of the test images, one per seed, quantised on the training images and run by
        onnxruntime as the operators are defined.
    ms: of one image on one thread; this and what follows is None where the CPU has no AVX-512.
    bytes: of the artifact.
    same: share of test images for which the compiled model and onnxruntime, on the folded ONNX
        model, predict what torch does.
    error: their largest difference of a logit from torch's, as a share of the range.
    int8_ms, int8_bytes, int8_same: as those of float32, of the quantised model compiled; same is
        the agreement with onnxruntime. None where the CPU has no VNNI.
    """

    int8: Sequence[float]
    ms: float | None = None
    bytes: int | None = None
    same: float | None = None
    error: float | None = None
    int8_ms: float | None = None
    int8_bytes: int | None = None
    int8_same: float | None = None

    @property
    def lost(self) -> float:
        """Mean accuracy that quantising costs; below zero where it gains."""
        return self.mean - statistics.mean(self.int8)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    made = Table(title="accuracy on the test images: mean and standard deviation over the seeds")
    for name in ("pattern", "kept", "method"):
        made.add_column(name)
    for name in NUMBERS:
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.pattern,
        f"{row.density:.1%}",
        row.method,
        f"{row.mean:.2%} ± {row.deviation:.2%}",
        f"{statistics.mean(row.int8):.2%} ± {_deviation(row.int8):.2%}",
        _spell(row.ms, "{:.3f} ms"),
        _spell(row.int8_ms, "{:.3f} ms"),
        _spell(_kib(row.bytes), "{:.0f} KiB"),
        _spell(_kib(row.int8_bytes), "{:.0f} KiB"),
        _spell(row.same, "{:.1%}"),
        _spell(row.int8_same, "{:.1%}"),
        _spell(row.error, "{:.0e}"),
    )


def _kib(nbytes: int | None) -> float | None:
    return None if nbytes is None else nbytes / 1024


def _spell(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)


def integers(rows: Sequence[Row]) -> Iterator[str]:
    """What quantising costs, over all methods and for the method that loses most."""
    lost = statistics.mean(row.lost for row in rows)
    points = round(100 * lost, 2) + 0.0  # not -0.00
    yield f"Over all methods int8 loses {points:.2f} points of accuracy on average."
    worst = max(rows, key=lambda row: row.lost)
    yield (
        f"{worst.method}, {worst.pattern} with {worst.density:.1%} kept, loses most: "
        f"{100 * worst.lost:.2f} points."
    )


def orderings(rows: Sequence[Score]) -> Iterator[str]:
    """Which of the papers' orderings the means show, and by how many standard errors."""
    by_key = {(row.pattern, row.density, row.method): row for row in rows}
    for better, worse in ORDERINGS:
        for (pattern, density, method), row in by_key.items():
            other = by_key.get((pattern, density, worse))
            if method != better or other is None:
                continue
            between = f"{better} against {worse}, {pattern} with {density:.1%} kept"
            yield _verdict(between, row, other, "reproduced", "not reproduced")


def beside_authors(rows: Sequence[Score]) -> Iterator[str]:
    """Our rows against those that the authors' code trains."""
    by_key = {(row.pattern, row.density, row.method): row for row in rows}
    for (pattern, density, method), row in by_key.items():
        other = by_key.get((pattern, density, f"{method}{BY_AUTHORS}"))
        if other is not None:
            between = f"{method}, {pattern} with {density:.1%} kept"
            yield _verdict(between, row, other, "ours is better", "ours is worse")


def _verdict(between: str, row: Score, other: Score, above: str, below: str) -> str:
    """By how many standard errors one mean is above or below another."""
    difference = row.mean - other.mean
    error = math.hypot(row.standard_error, other.standard_error)
    if min(len(row.accuracies), len(other.accuracies)) < 2:
        return f"{between}: too few seeds to say ({100 * difference:+.2f} points)"
    verdict = "level within one standard error"
    if abs(difference) > error:
        verdict = above if difference > 0 else below
    return (
        f"{between}: {verdict} ({100 * difference:+.2f} points, standard error {100 * error:.2f})"
    )


def write_result(result: Mapping[str, Any], rows: Sequence[Row], path: Path, about: str) -> None:
    """Write the JSON, and a page beside it; `about` is a sentence on the network."""
    settings = result["settings"]
    lines = [
        "# Accuracy of the training methods on handwritten digits",
        "",
        f"scikit-learn's digits, {settings['trained_images']} images to train, the other "
        f"{1797 - settings['trained_images']} to test; {settings['epochs']} epochs at the same "
        f"rate for every method, {settings['seeds']} seeds, mean ± standard deviation. One-shot "
        f"methods train densely for half of the epochs, then prune and train on. {about} "
        "Latency: one image, one thread, one seed's model compiled; at this size it is mostly the "
        "cost of calls. Same prediction: share of all test images for which torch, onnxruntime on "
        "the folded ONNX model, and the artifact agree; error: the largest difference of a logit "
        "from torch's, as a share of the range. In int8: the same models, folded and quantised by "
        "`nmc quantize` on the images to train; accuracy as onnxruntime computes the operators by "
        "definition, same prediction of the artifact for avx512_vnni with that. What is empty "
        "could not run on the CPU that made "
        f"the page, {result['machine']['cpu']}.",
        "",
        f"![Accuracy over the share of weights kept]({path.with_suffix('.png').name})",
        "",
        f"| pattern | kept | method | {' | '.join(NUMBERS)} |",
        f"| --- | --: | --- |{' --: |' * len(NUMBERS)}",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        "## Integers",
        "",
        *(f"- {line}" for line in integers(rows)),
        "",
        "## The papers' orderings",
        "",
        *(f"- {line}" for line in orderings(rows)),
        "",
        f"Generated by `python -m benchmarks.accuracy_digits --network {settings['network']}`.",
    ]
    replace_file(path, [json.dumps(result, indent=1).encode() + b"\n"])
    replace_file(path.with_suffix(".md"), ["\n".join(lines).encode() + b"\n"])


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over density, N:M on the left, 1x16 on the right where there is any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dense = rows[0].mean
    kinds = sorted({row.pattern == "1x16" for row in rows[1:]})
    figure, grid = pyplot.subplots(
        1, len(kinds), figsize=(5 * len(kinds), 4), sharey=True, layout="constrained", squeeze=False
    )
    axes = grid[0]
    for axis, blocks in zip(axes, kinds, strict=True):
        shown = [row for row in rows[1:] if (row.pattern == "1x16") == blocks]
        for method in dict.fromkeys(row.method for row in shown):
            line = [row for row in shown if row.method == method]
            error = [row.deviation / math.sqrt(len(row.accuracies)) for row in line]
            axis.errorbar(
                [row.density for row in line],
                [100 * row.mean for row in line],
                [100 * e for e in error],
                marker="o",
                capsize=3,
                label=method,
            )
        axis.axhline(100 * dense, color="grey", linestyle=":", label="dense")
        axis.set_xscale("log", base=2)
        ticks = sorted({row.density for row in shown})
        axis.set_xticks(ticks, [f"{tick:.1%}" for tick in ticks])
        axis.set_xlabel("weights kept in pruned layers")
        axis.set_title("1x16 blocks" if blocks else "N:M and unstructured")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy, %")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
