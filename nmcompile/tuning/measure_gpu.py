"""Timing of single kernels on the GPU at hand, by CUDA events, as a model meets them.

Not run on a machine with a GPU yet: tests use a driver of theirs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.cuda.build import compile_cubin, cuda_source
from nmcompile.kernels.cuda.launch import LoadedKernels, Memory, gpu_memory
from nmcompile.kernels.problem import Lowered
from nmcompile.runtime.cuda import Cuda, open_cuda

Array = npt.NDArray[Any]

FLUSH_BYTES = 192 << 20  # written before each call: twice the largest L2 cache, an L40's
BUDGET = 0.5  # seconds of running per problem
ROUNDS = (10, 100)  # fewest and most
_STREAM = 0


def measure_on_gpu(candidates: Sequence[Lowered], arch: str) -> tuple[list[float], list[float]]:
    """Median milliseconds of interleaved launches, and whether the candidates agree.

    Before each, the L2 cache is overwritten, which evicts the weights, and the input is read, which
    brings it back as far as it fits: so a layer meets them in a model.

    Args:
        candidates: functions that compute the same, of the same arguments.
        arch: of the GPU at hand, as nvcc calls it.

    Returns:
        The milliseconds, and how far each one's output for the same seeded input is from the first
        one's, as a share of its largest value.

    Raises:
        TargetError: nvcc is missing, or does not compile a candidate.
        DeviceError: the GPU cannot run a candidate, or its memory is too small.
    """
    cuda = open_cuda()
    functions = [lowered.emit_func() for lowered in candidates]
    sources = [cuda_source(function, arch) for function in functions]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = list(pool.map(lambda source: compile_cubin(source.text, arch), sources))
    params = [_parameters(function) for function in functions]
    random = np.random.default_rng(0)
    x = random.standard_normal(params[0]["x"][0], np.float32).astype(np.float16)
    with gpu_memory(cuda) as memory:
        # The same for all; ones keep every output well within float16.
        shared = {"x": memory.hold(x)}
        if "residual" in params[0]:
            shared["residual"] = memory.hold(np.ones(params[0]["residual"][0], np.float16))
        shape, dtype = params[0]["out"]
        shared["out"] = memory.room(_nbytes(shape, dtype))
        loaded, addresses = [], []
        for lowered, source, cubin, arguments in zip(
            candidates, sources, cubins, params, strict=True
        ):
            loaded.append(LoadedKernels(cuda, source, cubin))
            own = {name: memory.hold(np.ascontiguousarray(a)) for name, a in lowered.arrays.items()}
            if "scratch" in arguments:
                own["scratch"] = memory.room(_nbytes(*arguments["scratch"]))
            addresses.append(shared | own)
        medians = _medians(cuda, memory, loaded, addresses, x.nbytes)
        first, out = (np.empty(shape, dtype) for _ in range(2))
        differences: list[float] = []
        for kernels, places in zip(loaded, addresses, strict=True):
            memory.fill(shared["out"], out.nbytes)
            kernels.launch(places)
            memory.read(shared["out"], out if differences else first)
            differences.append(_difference(out, first) if differences else 0.0)
            kernels.unload()
    return medians, differences


def _parameters(function: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each argument of a TIR function."""
    return {
        str(param.name): (tuple(int(extent) for extent in param.shape), str(param.dtype))
        for param in function.params
    }


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _difference(found: Array, expected: Array) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    with np.errstate(invalid="ignore"):  # beyond float16 alike is no difference
        change = np.abs(found.astype(np.float32) - expected.astype(np.float32))
    return float(np.where(found == expected, 0.0, change).max()) / scale


def _medians(
    cuda: Cuda,
    memory: Memory,
    loaded: Sequence[LoadedKernels],
    addresses: Sequence[dict[str, int]],
    x_bytes: int,
) -> list[float]:
    """Median milliseconds of each."""
    flush, copy = memory.room(FLUSH_BYTES), memory.room(x_bytes)
    times: list[list[float]] = [[] for _ in loaded]
    begin, rounds = time.perf_counter(), 0
    # The first round warms up.
    while rounds <= ROUNDS[0] or (rounds <= ROUNDS[1] and time.perf_counter() - begin < BUDGET):
        events = []
        for kernels, places in zip(loaded, addresses, strict=True):
            # These take the GPU longer than the launches take the CPU, which so stays ahead.
            memory.fill(flush, FLUSH_BYTES)
            cuda.copy(copy, places["x"], x_bytes, _STREAM)
            start = cuda.record(_STREAM)
            kernels.launch(places)
            events.append((start, cuda.record(_STREAM)))
        for found, (start, end) in zip(times, events, strict=True):
            found.append(cuda.elapsed_ms(start, end))
            cuda.forget(start)
            cuda.forget(end)
        rounds += 1
    return [statistics.median(found[1:]) for found in times]
