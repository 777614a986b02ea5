"""TVM's own lowering for what no kernel of ours computes, fused and run on all threads.

TVM leaves such functions as serial loops on a CPU. The spatial loops of each are fused and run in
parallel; LLVM vectorises the innermost ones.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from nmcompile.kernels.catalog import CATALOG

VIEWS = ["relax.reshape"]  # stay operators: the VM passes the same memory on
MIN_PARALLEL = 8192  # elements; below, waking the threads costs more than it gains


def lower_fallback(module: Any) -> Any:
    """Legalise, fuse and schedule every operator that is still a Relax call."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(skip_ops=VIEWS),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    module = passes(module)
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and not is_kernel(var.name_hint):
            module.update_func(var, _parallelise(func))
    return module


def is_kernel(symbol: str) -> bool:
    """Whether a function is one of the catalogue's, and not TVM's lowering."""
    return any(symbol.startswith(kernel.name) for kernel in CATALOG)


def _parallelise(func: Any) -> Any:
    """Inline what is only passed on, then run the outer spatial loops of each block in parallel."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # an output, or a block that does more than pass a value on
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        kinds = [int(var.iter_type) for var in schedule.get(block).iter_vars]
        if len(kinds) != len(loops):
            continue
        spatial = []
        for loop, kind in zip(loops, kinds, strict=True):
            if kind != tirx.IterVar.DataPar:
                break
            spatial.append(loop)
        # The last loop stays serial inside, so that LLVM vectorises along contiguous memory.
        outer = spatial[:-1] if len(spatial) == len(loops) else spatial
        extent = math.prod(int(schedule.get(loop).extent) for loop in loops)
        if outer and extent >= MIN_PARALLEL:
            schedule.parallel(schedule.fuse(*outer))
    return schedule.mod["main"]


def build(module: Any, target: Any) -> Any:
    """Compile a lowered module for Relax's virtual machine.

    TVM's default pipeline looks for reshapes inside every TIR function and stops at functions that
    are not built of its blocks, as ours are not; reshapes are still operators here, so the pass is
    not needed.
    """
    pipeline = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    return relax.build(module, target, relax_pipeline=pipeline)
