"""Times single convolutions, each with the kernel that a compiled model would use.

    python -m benchmarks.bench_kernels --models resnet50 --patterns dense,1x16@0.5,2:4 --dtype int8

Weights are out of cache, the input is in it, as in a model. Prints a table with the share that each
layer reaches of its roof, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.models import MODELS
from benchmarks.problems import TARGETS, problem_of, title_of
from benchmarks.shapes import read_shapes
from nmcompile import runtime
from nmcompile.kernels.catalog import choose
from nmcompile.kernels.spec import Conv2d
from nmcompile.machine.describe import machine_document
from nmcompile.machine.roofs import Roofs, measure_roofs
from nmcompile.runtime import cpu
from nmcompile.targets import find_target
from nmcompile.tuning.library import measure

RESULTS = Path(__file__).parent / "results" / "kernels.json"


@dataclass(frozen=True)
class Row:
    """One convolution. Rates in GFLOP/s, or GOP/s; share of the roof that bounds the kernel."""

    model: str
    shape: str
    count: int
    pattern: str
    kernel: str
    threads: int
    ms: float
    nonzero_gflops: float
    dense_equivalent_gflops: float
    roof: str
    roof_share: float


def time_kernel(
    model: str,
    conv: Conv2d,
    count: int,
    spec: str,
    threads: int,
    roofs: Roofs,
    dtype: str = "float32",
    target: str | None = None,
) -> Row:
    """Measure one convolution of a model, for the precision's oldest target unless one is named.

    Raises:
        ValueError: the pattern does not fit it.
    """
    problem, target = problem_of(conv, spec, dtype), target or TARGETS[dtype][0]
    if problem is None or problem.detection is None:
        raise ValueError(f"{spec} does not fit {conv}")
    kernel = choose("conv2d", target, problem).kernel
    (times,) = measure(problem, [kernel.lower(problem)], find_target(target), (threads,)).ms
    flops = 2e-6 * conv.macs / times[0]
    nonzero = flops * problem.detection.density
    roof = kernel.roof or "fma"
    bound = roofs.of(roof, threads)
    assert bound is not None, "a CPU that runs the kernels has their roof"
    return Row(
        *(model, title_of(conv), count, spec, kernel.name, threads, times[0], nonzero, flops),
        roof=roof,
        roof_share=nonzero / bound,
    )


def table_of(rows: list[Row], roofs: Roofs) -> Table:
    """The rows for the terminal."""
    title = f"one core: FMA {roofs.fma:.0f}, L1 load {roofs.load:.0f} GFLOP/s"
    if roofs.vnni is not None:
        title += f", vpdpbusd {roofs.vnni:.0f} GOP/s"
    if roofs.bf16 is not None:
        title += f", vdpbf16ps {roofs.bf16:.0f} GFLOP/s"
    if roofs.amx_int8 is not None:
        title += f", tiles of bytes {roofs.amx_int8:.0f}, of bfloat16 {roofs.amx_bf16:.0f}"
    table = Table(title=title)
    for name in ("model", "shape", "pattern", "kernel"):
        table.add_column(name)
    for name in ("count", "threads", "ms", "non-zero GFLOP/s", "dense-equivalent", "of the roof"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            *(row.model, row.shape, row.pattern, row.kernel, str(row.count), str(row.threads)),
            *(f"{row.ms:.3f}", f"{row.nonzero_gflops:.1f}", f"{row.dense_equivalent_gflops:.1f}"),
            f"{row.roof_share:.0%} ({row.roof})",
        )
    return table


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench_kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="resnet50", help=f"some of {','.join(MODELS)}")
    parser.add_argument("--patterns", default="dense,1x16@0.5,2:4")
    parser.add_argument("--dtype", choices=tuple(TARGETS), default="float32")
    parser.add_argument("--target", help="default: the oldest that computes in the precision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    unknown = set(options.models.split(",")) - set(MODELS)
    if unknown:
        parser.error(f"--models: expected some of {', '.join(MODELS)}, found {unknown.pop()!r}")
    runtime.configure_environment()
    target = options.target or TARGETS[options.dtype][0]
    if target not in TARGETS[options.dtype]:
        named = " or ".join(TARGETS[options.dtype])
        parser.error(f"--target: expected {named} for {options.dtype}, found {target!r}")
    features = find_target(target).cpu_features
    cpu.require(features, f"timing {options.dtype} kernels")
    roofs = measure_roofs()
    work = [
        (model, conv, count, spec)
        for model in options.models.split(",")
        for conv, count in read_shapes(model)
        for spec in options.patterns.split(",")
        if problem_of(conv, spec, options.dtype) is not None
    ]
    rows = [
        time_kernel(*item, options.threads, roofs, options.dtype, target)
        for item in track(work, "measuring", console=Console(stderr=True))
    ]
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(rows, roofs))
    result = {
        "machine": machine_document(),
        "roofs": asdict(roofs),
        "rows": [asdict(row) for row in rows],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
