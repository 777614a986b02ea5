"""What differs between targets on the way from a Relax module to a library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm

from nmcompile.kernels.objects import Report
from nmcompile.passes.lowering.batch.split import split_batch
from nmcompile.passes.lowering.computed_weights import multiply_windows
from nmcompile.passes.lowering.fallback import lower_fallback
from nmcompile.passes.lowering.gpu import (
    build_gpu_library,
    fuse_for_gpu,
    gpu_target,
    schedule_for_gpu,
)
from nmcompile.passes.lowering.half import BrainLowering, HalfLowering
from nmcompile.passes.lowering.integers.constants import has_quantised, simplify_around
from nmcompile.passes.lowering.integers.lowering import IntegerLowering
from nmcompile.passes.lowering.kernels import KernelCall, Lowering
from nmcompile.passes.lowering.library import Maker, build_program
from nmcompile.passes.lowering.pooling import pool_images
from nmcompile.passes.lowering.simplify import simplify
from nmcompile.targets import BF16, Target

Module = Any


class Backend(Protocol):
    """The stages of one kind of target."""

    @property
    def lowering(self) -> type[Lowering]:
        """The pass that puts kernels into the module."""

    def simplify(self, module: Module) -> Module:
        """An imported module in the forms that kernels are matched in."""

    def arrange(self, module: Module) -> Module:
        """A simplified module, rearranged before kernels are chosen."""

    def finish(self, module: Module) -> Module:
        """Lower the operators that no kernel of ours computes."""

    def build(self, module: Module, maker: Maker, progress: Report) -> bytes:
        """Compile a finished module to the bytes of a shared library.

        Args:
            module: what `finish` returned.
            maker: of libraries for CPUs.
            progress: called with (functions done, functions in all).
        """

    def note(self, calls: Iterable[tuple[str, KernelCall]]) -> tuple[str, ...]:
        """What users should know of the kernel calls, each with its layer's name."""


@dataclass(frozen=True)
class CpuBackend:
    """NCHW float32, TVM's functions on all threads."""

    target: Target
    lowering: type[Lowering] = Lowering

    def simplify(self, module: Module) -> Module:
        """See `simplify`."""
        return simplify(module)

    def arrange(self, module: Module) -> Module:
        """Bring operators to forms with kernels; run early layers image by image where it pays."""
        return split_batch(multiply_windows(pool_images(module)))

    def finish(self, module: Module) -> Module:
        """See `lower_fallback`."""
        return lower_fallback(module)

    def build(self, module: Module, maker: Maker, progress: Report) -> bytes:
        """See `build_program`."""
        target = tvm.target.Target(self.target.llvm_options)
        return maker.make(build_program(module, target), progress)

    def note(self, calls: Iterable[tuple[str, KernelCall]]) -> tuple[str, ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class IntegerBackend(CpuBackend):
    """NHWC u8 between operators of quantised models, else as other CPUs."""

    lowering: type[Lowering] = IntegerLowering

    def simplify(self, module: Module) -> Module:
        """Keep the integers of weights."""
        return simplify_around(module, simplify)

    def arrange(self, module: Module) -> Module:
        """The same, but that the batch of quantised models is left whole."""
        return pool_images(module) if has_quantised(module) else super().arrange(module)


@dataclass(frozen=True)
class BrainBackend(CpuBackend):
    """NHWC bfloat16 between inputs and outputs that are as in the model."""

    lowering: type[Lowering] = BrainLowering

    def arrange(self, module: Module) -> Module:
        """Pool images. The batch stays whole: what `split_batch` counts is float32 in planes."""
        return pool_images(module)


@dataclass(frozen=True)
class GpuBackend:
    """NHWC float16 between inputs and outputs that are as in the model."""

    target: Target
    lowering: type[Lowering] = HalfLowering

    def simplify(self, module: Module) -> Module:
        """See `simplify`."""
        return simplify(module)

    def arrange(self, module: Module) -> Module:
        """Leave the batch whole: it is what fills a GPU."""
        return module

    def finish(self, module: Module) -> Module:
        """See `lower_gpu`."""
        return schedule_for_gpu(fuse_for_gpu(module, self._tvm_target), self._tvm_target)

    def build(self, module: Module, maker: Maker, progress: Report) -> bytes:
        """See `build_gpu_library`."""
        return build_gpu_library(module, self._tvm_target, self.target.arch)

    def note(self, calls: Iterable[tuple[str, KernelCall]]) -> tuple[str, ...]:
        """The largest error that rounding the weights to float16 has made."""
        worst = max(((rounding_error(call), layer) for layer, call in calls), default=(0.0, ""))
        error, layer = worst
        if not error:
            return ()
        return (
            f"weights are rounded to float16: by at most {error:.2g} of the largest weight of "
            f"their layer, in {layer}",
        )

    @property
    def _tvm_target(self) -> Any:
        return gpu_target(self.target.arch)


def backend_of(target: Target, precision: str | None = None) -> Backend:
    """The backend of a target, where models are compiled in a precision."""
    if target.arch:
        return GpuBackend(target)
    if precision == BF16:
        return BrainBackend(target)
    return IntegerBackend(target) if target.integers else CpuBackend(target)


def rounding_error(call: KernelCall) -> float:
    """Largest change of a weight by rounding to float16, as a share of the largest weight."""
    weight = call.problem.weight
    # Depthwise kernels keep their few weights in float32.
    if weight is None or "depthwise" in call.choice.kernel.name:
        return 0.0
    peak = float(np.abs(weight).max(initial=0.0))
    with np.errstate(over="ignore"):
        change = np.abs(weight - weight.astype(np.float16).astype(np.float32))
    return float(change.max(initial=0.0)) / peak if peak else 0.0
