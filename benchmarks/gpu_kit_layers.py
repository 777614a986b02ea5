"""The layers of a kit: tile variants of every ResNet-50 convolution, compiled."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.contents import Launch, Layer, Variant
from benchmarks.gpu.data import layer_arrays
from benchmarks.problems import is_prunable
from nmcompile.kernels.catalog import choose, rows_for
from nmcompile.kernels.cuda.build import CudaSource, compile_cubin, cuda_source, find_nvcc
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.sparse_tensor_core.conv import emit_conv
from nmcompile.kernels.sparse_tensor_core.tiles import Method
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from nmcompile.runtime.files import replace_file
from nmcompile.sparsity import Dense, Detection, parse_pattern

EPILOGUE = Epilogue(bias=True, activation=Activation("relu"))
# How many of a method's tile variants are measured, the best by the model first. The model has
# never been measured, so for pruned layers these are most of them.
MEASURED: Mapping[str, Measured] = {
    "sm_80": {"sparse": 8, "dense": 2},
    "sm_90a": {"wgmma": 6, "sparse": 6, "dense": 2},
}
ROWS: Mapping[Method, str] = {
    "wgmma": "conv2d_f16_two_four_wgmma",
    "sparse": "conv2d_f16_two_four",
    "dense": "conv2d_f16_dense",
}
MEASURED_DENSE = 4  # of layers that are not pruned
Measured = Mapping[Method, int]
Shapes = Sequence[tuple[Conv2d, int]]
Add = Callable[[str, bytes], None]
Track = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class _Task:
    """A variant before it is compiled."""

    layer: int
    variant: Variant
    source: CudaSource


class Compiler(Protocol):
    """Makes machine code of a kernel's source; `workers` kernels at a time."""

    workers: int

    def compile(self, source: CudaSource, arch: str) -> tuple[bytes, int]:
        """Machine code, and registers of a thread."""


class CubinCache:
    """nvcc, and what it compiled before, in a folder of cubins named by their sources."""

    workers = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version: bytes = b""

    def compile(self, source: CudaSource, arch: str) -> tuple[bytes, int]:
        """Machine code, and registers of a thread.

        Raises:
            TargetError: as `compile_cubin`.
        """
        if not self._version:
            self._version = subprocess.check_output([find_nvcc(), "--version"])
        digest = hashlib.sha256(b"\n".join((self._version, arch.encode(), source.text.encode())))
        path = self._folder / f"{digest.hexdigest()}.cubin"
        registers = path.with_suffix(".json")
        if not registers.exists():
            cubin = compile_cubin(source.text, arch)
            most = max((used.registers for used in cubin.resources.values()), default=0)
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, [memoryview(cubin.data)])
            replace_file(registers, [memoryview(json.dumps(most).encode())])
        return path.read_bytes(), json.loads(registers.read_text())


def make_layers(
    arch: str,
    batches: Sequence[int],
    shapes: Shapes,
    compiler: Compiler,
    add: Add,
    track: Track,
    measured: Measured | None = None,
) -> tuple[Layer, ...]:
    """The layers for one architecture; their cubins are handed to `add`.

    Args:
        arch: of the GPU.
        batches: each layer is there once per batch.
        shapes: the layers with batch 1, and how often the network has each.
        compiler: of the kernels.
        add: takes a name and content.
        track: shows progress.
        measured: how many variants of each method; by default as in `MEASURED`.
    """
    layers: list[Layer] = []
    tasks: list[_Task] = []
    for index, (conv, times) in enumerate(shapes):
        pattern = "2:4" if is_prunable(conv) else "dense"
        weight, bias = layer_arrays(conv, pattern, False, 10 * index)
        found = parse_pattern(pattern)
        detection = Detection(found, (found,), 1.0 if isinstance(found, Dense) else 0.5)
        problem = Problem(conv, EPILOGUE, weight, bias, detection, "float16")
        counts = measured or MEASURED[arch]
        if pattern == "dense":
            counts = {"dense": measured["dense"] if measured else MEASURED_DENSE}
        for batch in batches:
            sized = replace(problem, spec=replace(conv, batch=batch))
            for variant in _variants(sized, arch, counts):
                source = _source(sized.conv, variant, arch)
                launches = tuple(Launch(**asdict(launch)) for launch in source.launches)
                tasks.append(_Task(len(layers), replace(variant, launches=launches), source))
            layers.append(Layer(sized.conv, times, pattern, 10 * index, ()))
    made: list[list[Variant]] = [[] for _ in layers]
    with ThreadPoolExecutor(compiler.workers) as pool:
        done = pool.map(lambda task: compiler.compile(task.source, arch), tasks)
        for task, (cubin, registers) in zip(track(tasks, f"{arch}: layers"), done, strict=True):
            name = f"{hashlib.sha256(cubin).hexdigest()[:16]}.cubin"
            add(name, cubin)
            made[task.layer].append(replace(task.variant, cubin=name, registers=registers))
    return tuple(
        replace(layer, variants=tuple(found)) for layer, found in zip(layers, made, strict=True)
    )


def _variants(problem: Problem, arch: str, counts: Measured) -> Iterable[Variant]:
    rows = {row.name: row for row in rows_for("conv2d", arch, "float16")}
    chosen = choose("conv2d", arch, problem).kernel
    for method, count in counts.items():
        row = rows[f"{ROWS[method]}__{arch}"]
        for rank, candidate in enumerate(row.configs(problem)[:count]):
            yield Variant(
                *(method, candidate.config, candidate.cycles, rank, row is chosen and rank == 0),
                cubin="",
                registers=0,
                launches=(),
            )


def _source(conv: Conv2d, variant: Variant, arch: str) -> CudaSource:
    return cuda_source(emit_conv("conv", conv, EPILOGUE, variant.config, variant.method), arch)
