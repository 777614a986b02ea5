"""TVM's TIR pipeline, with registers for accumulators, with NaN, and without what our kernels lack.

TVM lowers every allocation inside a CPU function to a call of its heap allocator, however small.
LLVM keeps such memory in step with the registers in each iteration of the inner loop, as soon as
something in the loop (a prefetch, say) might look at it. Buffers of scope "local" are therefore
marked to stay allocations, which become stack slots and then registers. What maximum and minimum
do with NaN is decided here for all functions, ours and TVM's (`nan`).

Our kernels have no blocks, which is what TVM schedules. Passes that look for what scheduling leaves
behind find nothing in those for CPUs (one of them, the last bytes of a buffer), and took a fifth to
a third of the time of a compilation; they are left out there. The code that results is the same.
On GPUs one of them makes shared memory smaller.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

from nmcompile.kernels.nan import keep_nan_on_cpu, keep_nan_on_gpu

NAME = "nmcompile"
FOR_BLOCKS = (
    "s_tir.CompactBufferAllocation",
    "s_tir.InjectPermutedLayout",
    "s_tir.InjectVirtualThread",
)
"""Passes of which functions without blocks have no need."""


def _keep_local(buffer: Any) -> Any:
    if buffer.buffer.scope() != "local":
        return buffer
    annotations = {**dict(buffer.annotations), "disable_lower_builtin": tirx.IntImm("bool", 1)}
    return tirx.AllocBuffer(buffer.buffer, annotations)


@tvm.tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def keep_local_allocations(func: Any, module: Any, context: Any) -> Any:
    """Mark every local buffer, so that it is not lowered to a heap allocation."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _keep_local)))


def _is_plain(func: Any) -> bool:
    """Whether it is a CPU's function without blocks."""
    if func.attrs["target"].kind.name != "llvm":
        return False
    stop = tvm_ffi.VisitInterrupt()
    return tvm_ffi.structural_walk(func.body, (SBlock, lambda block: stop)) is None


def _pipeline() -> tuple[Any, Any, Any]:
    lower, finalize_host, finalize_device = get_tir_pipeline("s_tir")

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def device_independent(module: Any, context: Any) -> Any:
        functions = dict(module.functions_items())
        plain = {var: func for var, func in functions.items() if _is_plain(func)}
        others = {var: func for var, func in functions.items() if var not in plain}
        lowered = lower(tvm.IRModule(others, attrs=module.attrs))
        with tvm.transform.PassContext(
            context.opt_level,
            context.required_pass,
            [*context.disabled_pass, *FOR_BLOCKS],
            context.instruments,
            dict(context.config),
        ):
            lowered.update(lower(tvm.IRModule(plain, attrs=module.attrs)))
        return lowered

    host = tvm.ir.transform.Sequential([keep_local_allocations, keep_nan_on_cpu, finalize_host()])
    device = tvm.ir.transform.Sequential([keep_nan_on_gpu, finalize_device()])
    return device_independent, lambda: host, lambda: device


register_tir_pipeline(NAME, _pipeline)
