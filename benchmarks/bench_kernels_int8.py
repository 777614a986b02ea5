"""Times single integer convolutions on one thread against the roof of `vpdpbusd`.

    python -m benchmarks.bench_kernels_int8 --patterns dense,2:4,1x16@0.5 --layers 1,4,11

Every kernel that takes a layer is timed, the one that the model prefers is marked. Times are those
of the processor, the best of many calls with warm caches: what the kernel can do, not what a model
meets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

from benchmarks.models import MODELS
from benchmarks.problems import is_prunable, make_int8_problem, title_of
from benchmarks.shapes import read_shapes
from nmcompile import runtime
from nmcompile.kernels.catalog import Kernel, choose, rows_for
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.machine.roofs import measure_roofs
from nmcompile.runtime import cpu
from nmcompile.sparsity import Dense, detect, parse_pattern
from nmcompile.targets import find_target

TARGET = "avx512_vnni"
SECONDS = 0.05  # of calls, per kernel
CALLS = (5, 300)  # fewest and most


def compiled(function: Any) -> Any:
    """The function of a TIR function, on this machine."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    target = tvm.target.Target(find_target(TARGET).llvm_options)
    return tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE)["kernel"]


def best_seconds(call: Callable[[], object]) -> float:
    """Of one call, by the time that this thread had the processor."""
    times: list[float] = []
    while len(times) < CALLS[0] or (len(times) < CALLS[1] and sum(times) < SECONDS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def problem_of(conv: Conv2d, spec: str) -> Problem | None:
    """A convolution of u8 to u8 whose weights hold a pattern; None where it is not pruned."""
    name, _, density = spec.partition("@")
    pattern = parse_pattern(name)
    if not isinstance(pattern, Dense) and not is_prunable(conv):
        return None
    problem = make_int8_problem(conv, pattern, float(density) if density else None)
    assert problem.weight is not None
    return replace(problem, detection=detect(problem.weight))


def seconds_of(kernel: Kernel, problem: Problem) -> float:
    """Of one call with the tiles that the model prefers."""
    lowered, conv = kernel.lower(problem), problem.conv
    function = compiled(lowered.emit_func())
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (conv.batch, conv.in_height, conv.in_width, conv.in_channels))
    out = np.zeros((conv.batch, conv.out_height, conv.out_width, conv.out_channels), np.uint8)
    arrays = [x.astype(np.uint8), *(lowered.arrays[name] for name in lowered.operands), out]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    return best_seconds(lambda: function(*tensors))


def rows_of(layers: Sequence[Conv2d], specs: Sequence[str], roof: float) -> list[tuple[str, ...]]:
    """One line for every kernel that takes a layer with a pattern."""
    lines: list[tuple[str, ...]] = []
    for conv in layers:
        for spec in specs:
            problem = problem_of(conv, spec)
            if problem is None or problem.detection is None:
                continue
            chosen = choose("conv2d", TARGET, problem).kernel
            for kernel in rows_for("conv2d", TARGET, "int8"):
                if kernel.refuse(problem) is not None:
                    continue
                seconds = seconds_of(kernel, problem)
                rate = 2e-9 * conv.macs / seconds
                share = rate * problem.detection.density / roof
                mark = " *" if kernel is chosen else ""
                name = kernel.name.removesuffix(f"__{TARGET}") + mark
                lines.append(
                    (
                        title_of(conv),
                        spec,
                        name,
                        f"{seconds * 1e6:.1f}",
                        f"{rate:.0f}",
                        f"{share:.0%}",
                    )
                )
    return lines


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench_kernels_int8", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet50", choices=sorted(MODELS))
    parser.add_argument("--layers", help="numbers of layers in its file of shapes, from 1")
    parser.add_argument("--patterns", default="dense,2:4,1:4,1x16@0.5,1x32@0.5,unstructured@0.1")
    options = parser.parse_args()
    runtime.configure_environment()
    cpu.require(find_target(TARGET).cpu_features, "timing integer kernels")
    convs = [conv for conv, _ in read_shapes(options.model)]
    numbers = options.layers.split(",") if options.layers else range(1, len(convs) + 1)
    if not all(1 <= int(number) <= len(convs) for number in numbers):
        parser.error(f"--layers: expected numbers from 1 to {len(convs)}, found {options.layers}")
    roof = measure_roofs().vnni
    assert roof is not None, "the CPU has it"
    table = Table(title=f"one core: vpdpbusd {roof:.0f} GOP/s")
    for name in ("shape", "pattern", "kernel"):
        table.add_column(name)
    for name in ("us", "dense-equivalent GOP/s", "non-zeros of the roof"):
        table.add_column(name, justify="right")
    layers = [convs[int(number) - 1] for number in numbers]
    for row in rows_of(layers, options.patterns.split(","), roof):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
