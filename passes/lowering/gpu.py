"""TVM's own lowering for what no GPU kernel of ours computes, and the library of a GPU's model."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import dlight

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.kernels.cuda.library import compiling_for, export
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.passes.lowering.fallback import VIEWS, fuse_operators, is_others, machine_pipeline
from nmcompile.passes.lowering.room import check_room
from nmcompile.runtime.files import scratch_folder
from nmcompile.wording import way

# Every architecture here has more; TVM's schedules then also suit the smallest.
LIMITS = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "thread_warp_size": 32,
}
# Tried in order: the last one takes whatever has loops.
RULES = (
    dlight.gpu.Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
    dlight.gpu.Fallback(),
)

HOST_CPU = "x86-64"  # whichever it is
THREADS = 128  # of a block of what TVM has no rule for
CALLS = ("relax.call_tir", "relax.call_tir_inplace")


def gpu_target(arch: str) -> Any:
    """TVM's target for an architecture, as nvcc calls it; the CPU only launches the kernels."""
    host = {"kind": "llvm", "mcpu": HOST_CPU}
    return tvm.target.Target({"kind": "cuda", "arch": arch, **LIMITS}, host=host)


def fuse_for_gpu(module: Any, target: Any) -> Any:
    """Legalise and fuse what is still a Relax call.

    Raises:
        UnsupportedOperatorError: TVM has no lowering for an operator, or only one for CPUs.
    """
    with target:
        module = fuse_operators(module)
    unknown: dict[str, None] = {}
    for _, func in module.functions_items():
        if not isinstance(func, relax.Function):
            continue
        for block in func.body.blocks:
            for binding in block.bindings:
                value = binding.value
                name = str(getattr(getattr(value, "op", None), "name", ""))
                if isinstance(value, relax.Call) and name not in (*CALLS, *VIEWS):
                    callee = getattr(value.args[0], "global_symbol", "") if value.args else ""
                    unknown[str(callee) or name.removeprefix("relax.")] = None
    _refuse(list(unknown))
    return module


def schedule_for_gpu(module: Any, target: Any) -> Any:
    """Bind the loops of TVM's functions to threads.

    Raises:
        UnsupportedOperatorError: a function has no loops to bind.
    """
    unknown = []
    for var, func in module.functions_items():
        if not is_others(var, func):
            continue
        found = _by_rules(func, target) or _by_loops(func)
        if found is None:
            unknown.append(var.name_hint)
        else:
            module.update_func(var, found)
    _refuse(unknown)
    return module


def _by_rules(func: Any, target: Any) -> Any | None:
    """The schedule of TVM's rules; None where none of them is made for the function."""
    try:
        with target:
            found = dlight.ApplyDefaultSchedule(*RULES)(tvm.IRModule({"main": func}))["main"]
            # The rules also divide reductions among threads that cannot be: positions of maxima.
            s_tir.transform.LowerCrossThreadReduction()(tvm.IRModule({"main": found}))
    except (RuntimeError, ValueError, AssertionError):
        return None
    return found if _has_threads(found) else None


def _by_loops(func: Any) -> Any | None:
    """One thread for each turn of the outer loops that carry nothing on; None without such loops.

    For what TVM's rules leave out, as windows whose size depends on where they are.
    """
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        for block in blocks:
            loops, kinds = schedule.get_loops(block), schedule.get(block).iter_vars
            spatial = 0
            while spatial < min(len(loops), len(kinds)):
                if int(kinds[spatial].iter_type) != tirx.IterVar.DataPar:
                    break
                spatial += 1
            if not spatial:
                return None
            fused = schedule.fuse(*loops[:spatial])
            outer, inner = schedule.split(fused, [None, THREADS])
            schedule.bind(outer, "blockIdx.x")
            schedule.bind(inner, "threadIdx.x")
    except (RuntimeError, ValueError):
        return None
    return schedule.mod["main"] if blocks else None


def build_gpu_library(module: Any, target: Any, arch: str) -> bytes:
    """Compile a scheduled module to the bytes of a shared library with a cubin for `arch`.

    All kernels between those that touch an input or an output are captured in a CUDA graph at the
    first run, so that a run launches few things; not where a function takes memory while it runs,
    which a capture forbids.

    Raises:
        TargetError: nvcc is missing, or cannot compile a kernel.
    """
    options = {"relax.backend.use_cuda_graph": not takes_memory(module)}
    pipeline = machine_pipeline(relax.transform.RewriteCUDAGraph())
    with target, tvm.transform.PassContext(opt_level=3, config=options), compiling_for(arch):
        executable = relax.build(module, target, relax_pipeline=pipeline, tir_pipeline=TIR_PIPELINE)
    with scratch_folder() as folder:
        check_room(folder, len(module.get_global_vars()))
        path = folder / "model.so"
        export(executable, arch, path)
        return path.read_bytes()


def takes_memory(module: Any) -> bool:
    """Whether a function of TVM's has intermediate results in global memory."""
    for var, func in module.functions_items():
        if is_others(var, func):
            schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
            root = schedule.get(schedule.get_sblock("root"))
            if any(buffer.scope() == "global" for buffer in root.alloc_buffers):
                return True
    return False


def _has_threads(func: Any) -> bool:
    found = []

    def visit(loop: Any) -> None:
        if loop.thread_binding is not None:
            found.append(loop)

    tvm_ffi.structural_walk(func.body, (tirx.For, visit))
    return bool(found)


def _refuse(operators: list[str]) -> None:
    if operators:
        raise UnsupportedOperatorError(
            f"no lowering for GPUs of {', '.join(operators)}; expected operators that nmcompile or "
            "TVM can run on one: leave these out of the exported model (and do them before or "
            "behind it), or compile it for a CPU with "
            f"{way('--target avx512', repr('avx512'))}"
        )
