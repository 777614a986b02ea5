"""Times sparse convolutions at falling density, and says where they overtake the dense ones.

    python -m benchmarks.bench_density --model resnet50 --densities 1,0.9,0.5,0.25
    python -m benchmarks.bench_density --dtype int8

Each layer runs sparse even where the compiler would run it dense, interleaved with the dense kernel
that the compiler picks; other engines run it dense, right after. Weights are out of cache, the
input is in it, as in a model. Prints tables, writes JSON and a picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.density import (
    DTYPES,
    Layer,
    Result,
    path_of,
    picture,
    tables,
    write_result,
)
from benchmarks.models import MODELS
from benchmarks.peer_layers import time_peers
from benchmarks.problems import MAKERS, TARGETS, is_prunable, title_of
from benchmarks.report import TITLES
from benchmarks.shapes import read_shapes
from nmcompile import runtime
from nmcompile.kernels.catalog import Kernel, choose, rows_for
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.machine.describe import machine_document
from nmcompile.runtime import cpu
from nmcompile.sparsity import NM, Dense, OneByN, Pattern, Unstructured
from nmcompile.targets import find_target
from nmcompile.tuning.library import measure

GROUP = 16  # weights of an N:M group
DENSITIES = "1,0.875,0.75,0.625,0.5,0.375,0.25,0.125,0.0625"  # whole weights of a group


@dataclass(frozen=True)
class Family:
    """A line of the picture: a pattern, and the row for it, None for the compiler's pick.

    No pattern stands for N:16, with the N of the density.
    """

    name: str
    pattern: Pattern | None
    kernel: str | None = None

    def pattern_at(self, density: float) -> Pattern:
        """The pattern at a density."""
        return self.pattern or NM(max(1, round(density * GROUP)), GROUP)

    def row(self, problem: Problem) -> Kernel:
        """The sparse kernel for a problem, whether or not the dense one is faster."""
        if self.kernel is None:
            picked = choose("conv2d", TARGETS[problem.dtype][0], problem).kernel
            if picked.sparse:
                return picked
        return next(
            row
            for row in rows_for("conv2d", TARGETS[problem.dtype][0], problem.dtype)
            if row.sparse and self.kernel in (None, row.name) and row.refuse(problem) is None
        )


FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "float32": (
        Family("1x16", OneByN(16)),
        Family("1x16, without Winograd", OneByN(16), "conv2d_f32_one_by_n__avx512"),
        Family(f"N:{GROUP}", None, "conv2d_f32_nm__avx512"),
        Family("unstructured", Unstructured(), "conv2d_f32_nm__avx512"),
    ),
    "int8": (
        Family("1x16", OneByN(16), "conv2d_i8_one_by_n__avx512_vnni"),
        Family(f"N:{GROUP}", None, "conv2d_i8_nm__avx512_vnni"),
        Family("unstructured", Unstructured(), "conv2d_i8_nm__avx512_vnni"),
    ),
}


def heaviest(
    shapes: Sequence[tuple[Conv2d, int]], share: float
) -> tuple[list[tuple[Conv2d, int]], float]:
    """The fewest prunable layers that make up a share of their multiplications, and their share."""
    prunable = [(conv, count) for conv, count in shapes if is_prunable(conv)]
    prunable.sort(key=lambda entry: -entry[0].macs * entry[1])
    work = np.cumsum([conv.macs * count for conv, count in prunable])
    # One more than those that do not reach it.
    kept = prunable[: int((work < share * work[-1]).sum()) + 1]
    return kept, float(work[len(kept) - 1] / work[-1])


def time_layer(
    conv: Conv2d, count: int, densities: Sequence[float], threads: int, dtype: str
) -> Layer:
    """One layer dense and with all families at all densities, in turns; then in other engines."""
    make, families = MAKERS[dtype], FAMILIES[dtype]
    dense = make(conv, Dense())
    picked = choose("conv2d", TARGETS[dtype][0], dense).kernel
    candidates = [picked.lower(dense)]
    # Where two families run the same row, it is timed once.
    at: dict[tuple[Pattern, float, str], int] = {}
    runs: dict[str, list[int]] = {family.name: [] for family in families}
    for family in families:
        for density in densities:
            pattern = family.pattern_at(density)
            problem = make(conv, pattern, density)
            row = family.row(problem)
            key = (pattern, density, row.name)
            if key not in at:
                at[key] = len(candidates)
                candidates.append(row.lower(problem))
            runs[family.name].append(at[key])
    (times,) = measure(dense, candidates, find_target(TARGETS[dtype][0]), (threads,)).ms
    ms = {name: [times[i] for i in indices] for name, indices in runs.items()}
    peers = time_peers(dense, threads)
    return Layer(title_of(conv), count, picked.name, times[0], ms, peers)


def _densities(text: str) -> list[float]:
    """An argparse type: densities, falling."""
    try:
        values = sorted({float(word) for word in text.split(",")}, reverse=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers like 1,0.5,0.25") from error
    if len(values) < 2 or not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two or more above 0, at most 1")
    return values


def _share(text: str) -> float:
    """An argparse type: a share above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0, at most 1")
    return value


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_density", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", choices=list(MODELS), default="resnet50")
    parser.add_argument("--densities", type=_densities, default=_densities(DENSITIES))
    parser.add_argument(
        "--share",
        type=_share,
        default=0.9,
        help="run only the heaviest layers that make up this share of the multiplications",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--output", type=Path, help="results/density.json, or that of the dtype")
    options = parser.parse_args(words)
    options.output = options.output or path_of(options.dtype)
    return options


def main() -> int:
    """Run the benchmark."""
    options = parse_arguments()
    runtime.configure_environment()
    cpu.require(
        find_target(TARGETS[options.dtype][0]).cpu_features, f"timing {options.dtype} kernels"
    )
    shapes, share = heaviest(read_shapes(options.model), options.share)
    layers = [
        time_layer(conv, count, options.densities, options.threads, options.dtype)
        for conv, count in track(shapes, "measuring", console=Console(stderr=True))
    ]
    result = Result(
        machine=machine_document(),
        model=options.model,
        share=share,
        threads=options.threads,
        densities=options.densities,
        families=[family.name for family in FAMILIES[options.dtype]],
        layers=layers,
        dtype=options.dtype,
    )
    write_result(result, options.output)
    picture(result, TITLES[options.model], options.output.with_suffix(".png"))
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in tables(result):
        console.print(table)
    console.print(f"written to {options.output} and {options.output.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
