"""TVM's TIR pipeline, changed in two places: accumulators become registers, and NaN is kept.

TVM lowers every allocation inside a CPU function to a call of its heap allocator, however small.
LLVM keeps such memory in step with the registers in each iteration of the inner loop, as soon as
something in the loop (a prefetch, say) might look at it. Buffers of scope "local" are therefore
marked to stay allocations, which become stack slots and then registers. What maximum and minimum
do with NaN is decided here for all functions, ours and TVM's (`nan`).
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

from nmcompile.kernels.nan import keep_nan_on_cpu, keep_nan_on_gpu

NAME = "nmcompile"


def _keep_local(buffer: Any) -> Any:
    if buffer.buffer.scope() != "local":
        return buffer
    annotations = {**dict(buffer.annotations), "disable_lower_builtin": tirx.IntImm("bool", 1)}
    return tirx.AllocBuffer(buffer.buffer, annotations)


@tvm.tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def keep_local_allocations(func: Any, module: Any, context: Any) -> Any:
    """Mark every local buffer, so that it is not lowered to a heap allocation."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _keep_local)))


def _pipeline() -> tuple[Any, Any, Any]:
    device_independent, finalize_host, finalize_device = get_tir_pipeline("s_tir")
    host = tvm.ir.transform.Sequential([keep_local_allocations, keep_nan_on_cpu, finalize_host()])
    device = tvm.ir.transform.Sequential([keep_nan_on_gpu, finalize_device()])
    return device_independent, lambda: host, lambda: device


register_tir_pipeline(NAME, _pipeline)
