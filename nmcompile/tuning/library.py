"""Kernels compiled to be measured: `nmcompile.machine.trial` times them, here or elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from nmcompile.kernels.avx512_bf16.layer import brain_layer
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.problem import Array, Lowered, Problem
from nmcompile.linking import link
from nmcompile.machine.trial import Measured, Operand, TimedKernel, Trial, measure_trial
from nmcompile.targets import Target


@dataclass(frozen=True, eq=False)
class KernelLibrary:
    """Compiled kernels.

    module: the functions by name.
    arrays: constants by name; kernels with equal ones share them.
    """

    module: Any
    kernels: tuple[TimedKernel, ...]
    arrays: Mapping[str, Array]

    def trial_of(self, problem: Problem) -> Trial:
        """The kernels as lowerings of a convolution or matrix product."""
        integers = problem.integers
        if integers is not None:
            x, out = problem.bytes_shapes
            residual = integers.residual
            added = "" if residual is None else "float32" if residual.real else "uint8"
            return Trial(x, out, added, self.kernels, "uint8", integers.out)
        added = problem.dtype if problem.epilogue.residual else ""
        if problem.dtype == "bfloat16":
            shapes = brain_layer(problem).shapes
            return Trial(*shapes, added, self.kernels, "bfloat16", "bfloat16")
        return Trial(*problem.shapes, added, self.kernels)

    def write(self, library: Path, arrays: Path) -> None:
        """Write a shared library and an .npz file."""
        self.module.export_library(str(library), fcompile=link)
        np.savez(arrays, **self.arrays)  # type: ignore[arg-type]


def compile_kernels(candidates: Sequence[Lowered], target: Target) -> KernelLibrary:
    """Compile kernels, and what prepares their operands, for a target's CPU."""
    prepares = {p for lowered in candidates for p in lowered.prepare.values()}
    preparing = {p: f"prepare_{i}" for i, p in enumerate(prepares)}
    functions = {f"kernel_{i}": lowered.emit_func() for i, lowered in enumerate(candidates)}
    named = functions | {name: p.emit_func() for p, name in preparing.items()}
    module = tvm.compile(
        tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in named.items()}),
        target=tvm.target.Target(target.llvm_options),
        tir_pipeline=TIR_PIPELINE,
    )
    arrays: dict[str, Array] = {}
    names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def keep(array: Array) -> str:
        array = np.ascontiguousarray(array)
        content = (str(array.dtype), array.shape, hashlib.blake2b(array.tobytes()).digest())
        name = names.setdefault(content, f"array_{len(names)}")
        arrays[name] = array
        return name

    kernels = []
    for function, lowered in zip(functions, candidates, strict=True):
        kept = {key: keep(array) for key, array in lowered.arrays.items()}
        operands = []
        for key in lowered.operands:
            prepare = lowered.prepare.get(key)
            if prepare is None:
                operands.append(Operand((kept[key],)))
                continue
            sources = tuple(kept[source] for source in prepare.sources)
            operands.append(Operand(sources, preparing[prepare], prepare.size))
        kernels.append(TimedKernel(function, tuple(operands)))
    return KernelLibrary(module, tuple(kernels), arrays)


def measure(
    problem: Problem, candidates: Sequence[Lowered], target: Target, threads: Sequence[int]
) -> Measured:
    """Compile lowerings of a convolution or matrix product and time them on this machine."""
    library = compile_kernels(candidates, target)
    return measure_trial(library.module, library.trial_of(problem), library.arrays, threads)
