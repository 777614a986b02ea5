"""Timing of single kernels as a model meets them: weights out of cache, input in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.runtime.native import native_runtime

ALIGN = 64
FLUSH_BYTES = 4 << 20  # read before each call: more than an L2 cache holds
BUDGET = 0.6  # seconds of running per problem
ROUNDS = (5, 25)  # fewest and most


def measure(
    problem: Problem, candidates: Sequence[Lowered], llvm_cpu: str, threads: Sequence[int]
) -> tuple[list[list[float]], list[npt.NDArray[np.float32]]]:
    """Median milliseconds of interleaved calls, and the outputs of the candidates.

    Returns:
        For each number of `threads` the milliseconds of each candidate; and what each made of the
        same seeded input, so that the caller can see whether they agree.
    """
    conv = problem.conv
    pool = native_runtime()
    before = pool.num_threads()
    random = np.random.default_rng(0)
    shape = (conv.batch, conv.in_channels, conv.in_height, conv.in_width)
    x = _aligned(random.standard_normal(shape, dtype=np.float32))
    out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    residual = [_aligned(np.ones(out_shape, np.float32))] if problem.epilogue.residual else []
    calls, outputs = [], []
    for function, operands in compile_kernels(candidates, llvm_cpu):
        outputs.append(_aligned(np.zeros(out_shape, np.float32)))
        first, *last = (tvm.runtime.from_dlpack(a) for a in (x, *residual, outputs[-1]))
        calls.append((function, [first, *operands, *last]))
    medians = []
    for count in threads:
        pool.use_threads(count)
        medians.append(_medians(calls, x))
    pool.use_threads(before)
    return medians, outputs


def compile_kernels(candidates: Sequence[Lowered], llvm_cpu: str) -> list[tuple[Any, list[Any]]]:
    """The function of each kernel and its operands as TVM tensors, those prepared that have to be.

    What a preparation leaves unwritten is NaN.
    """
    prepares = {p for lowered in candidates for p in lowered.prepare.values()}
    preparing = {p: f"prepare_{i}" for i, p in enumerate(prepares)}
    functions = {f"kernel_{i}": lowered.emit_func() for i, lowered in enumerate(candidates)}
    named = functions | {name: p.emit_func() for p, name in preparing.items()}
    module = tvm.compile(
        tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in named.items()}),
        target=tvm.target.Target({"kind": "llvm", "mcpu": llvm_cpu}),
        tir_pipeline=TIR_PIPELINE,
    )
    compiled = []
    for name, lowered in zip(functions, candidates, strict=True):
        tensors = {
            key: tvm.runtime.from_dlpack(_aligned(array)) for key, array in lowered.arrays.items()
        }
        made = {}
        for key, prepare in lowered.prepare.items():
            blank = _aligned(np.full(prepare.size, np.nan, np.float32))
            made[key] = tvm.runtime.from_dlpack(blank)
            module[preparing[prepare]](*(tensors[s] for s in prepare.sources), made[key])
        tensors |= made
        compiled.append((module[name], [tensors[key] for key in lowered.operands]))
    return compiled


def _medians(calls: Sequence[tuple[Any, Sequence[Any]]], x: npt.NDArray[np.float32]) -> list[float]:
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


def _aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins on a cache line, as the runtime's tensors do."""
    raw = np.empty(array.nbytes + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
