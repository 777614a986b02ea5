"""Timing of single kernels as a model meets them: weights out of cache, input in it.

The half of tuning that runs on the machine that is measured, with numpy and TVM's runtime only.
`nmcompile.tuning.library` compiles what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.runtime.native import available_threads, native_runtime
from nmcompile.runtime.specs import numpy_dtype
from nmcompile.runtime.tensors import from_numpy

Array = npt.NDArray[Any]

ALIGN = 64
FLUSH_BYTES = 4 << 20  # read before each call: more than an L2 cache holds
BUDGET = 0.6  # seconds of running per problem
ROUNDS = (5, 25)  # fewest and most


@dataclass(frozen=True)
class Operand:
    """A constant that a kernel reads.

    sources: names of arrays; one is read as it is, unless
    prepare: a function of the library makes `size` floats of them.
    """

    sources: tuple[str, ...]
    prepare: str = ""
    size: int = 0


@dataclass(frozen=True)
class TimedKernel:
    """A function of a library (x, operands, [residual], out)."""

    function: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Trial:
    """Kernels of one library that compute the same.

    x, out: shapes of input and output. x_dtype, out_dtype: their elements.
    residual: the dtype of another tensor of the output's shape that is added; "" for none.
    """

    x: tuple[int, ...]
    out: tuple[int, ...]
    residual: str
    kernels: tuple[TimedKernel, ...]
    x_dtype: str = "float32"
    out_dtype: str = "float32"

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Trial:
        """A trial as `dataclasses.asdict` and JSON leave it."""
        return Trial(
            tuple(document["x"]),
            tuple(document["out"]),
            document["residual"],
            tuple(
                TimedKernel(
                    kernel["function"],
                    tuple(
                        Operand(tuple(o["sources"]), o["prepare"], o["size"])
                        for o in kernel["operands"]
                    ),
                )
                for kernel in document["kernels"]
            ),
            document["x_dtype"],
            document["out_dtype"],
        )


@dataclass(frozen=True)
class Measured:
    """What a trial showed.

    ms: for each number of threads the median milliseconds of each kernel.
    differences: of each kernel's output from the first one's, as a share of its largest value.
    """

    ms: list[list[float]]
    differences: list[float]


def thread_counts() -> list[int]:
    """Those that count: an artifact runs on one thread or on all.

    What is fastest on one can split badly.
    """
    return sorted({1, available_threads()})


def measure_trial(
    module: Any, trial: Trial, arrays: Mapping[str, Array], threads: Sequence[int]
) -> Measured:
    """Time interleaved calls of all kernels on seeded input.

    Args:
        module: the library's functions by name.
        trial: what to call.
        arrays: the constants by name.
        threads: numbers of threads to time on.
    """
    native = native_runtime()
    before = native.num_threads()
    random = np.random.default_rng(0)
    if trial.x_dtype == "uint8":
        x = _aligned(random.integers(0, 256, trial.x).astype(np.uint8))
    else:
        numbers = random.standard_normal(trial.x, dtype=np.float32)
        x = _aligned(numbers.astype(numpy_dtype(trial.x_dtype)))
    residual = []
    if trial.residual:
        residual = [_aligned(np.ones(trial.out, numpy_dtype(trial.residual)))]
    calls, outputs = [], []
    for function, operands in ready_kernels(module, trial.kernels, arrays):
        outputs.append(_aligned(np.zeros(trial.out, numpy_dtype(trial.out_dtype))))
        first, *last = (from_numpy(native, a) for a in (x, *residual, outputs[-1]))
        calls.append((function, [first, *operands, *last]))
    medians = []
    for count in threads:
        native.use_threads(count)
        medians.append(_medians(calls, x))
    native.use_threads(before)
    found = [output.astype(np.float64) for output in outputs]  # bytes would wrap around
    scale = float(np.abs(found[0]).max()) or 1.0
    differences = [float(np.abs(output - found[0]).max()) / scale for output in found]
    return Measured(medians, differences)


def ready_kernels(
    module: Any, kernels: Sequence[TimedKernel], arrays: Mapping[str, Array]
) -> list[tuple[Any, list[Any]]]:
    """The function of each kernel and its operands as tensors of its own, those prepared that are.

    What a preparation leaves unwritten is NaN.
    """
    native = native_runtime()
    ready = []
    for kernel in kernels:
        tensors = []
        for operand in kernel.operands:
            sources = [native.from_dlpack(_aligned(arrays[name])) for name in operand.sources]
            if operand.prepare:
                blank = _aligned(np.full(operand.size, np.nan, np.float32))
                tensors.append(native.from_dlpack(blank))
                module[operand.prepare](*sources, tensors[-1])
            else:
                tensors += sources
        ready.append((module[kernel.function], tensors))
    return ready


def _medians(calls: Sequence[tuple[Any, Sequence[Any]]], x: Array) -> list[float]:
    """Median milliseconds of each call on the pool as it is."""
    flush = np.zeros(FLUSH_BYTES // 4, np.float32)
    seconds: list[list[float]] = [[] for _ in calls]
    rounds = 0
    begin = time.perf_counter()
    # The first round warms up.
    while rounds <= ROUNDS[0] or (rounds <= ROUNDS[1] and time.perf_counter() - begin < BUDGET):
        for times, (function, arguments) in zip(seconds, calls, strict=True):
            flush.sum()
            x.sum()
            start = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - start)
        rounds += 1
    return [statistics.median(times[1:]) * 1e3 for times in seconds]


def _aligned(array: Array) -> Array:
    """A copy that begins on a cache line, as the runtime's tensors do."""
    raw = np.empty(array.nbytes + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
