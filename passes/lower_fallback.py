"""TVM's own lowering for what no kernel of ours computes, fused and run on all threads.

TVM leaves such functions as serial loops on a CPU. The spatial loops of each are fused and run in
parallel; LLVM vectorises the innermost ones.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from nmcompile.kernels.catalog import find_row
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE

VIEWS = ["relax.reshape"]  # stay operators: the VM passes the same memory on
MIN_PARALLEL = 8192  # elements; below, waking the threads costs more than it gains


def lower_fallback(module: Any) -> Any:
    """Legalise, fuse and schedule every operator that is still a Relax call."""
    entries = [
        var.name_hint for var, func in module.functions_items() if isinstance(func, relax.Function)
    ]
    passes = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(skip_ops=VIEWS),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(entries),
        ]
    )
    module = passes(module)
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and not is_kernel(var.name_hint):
            module.update_func(var, _parallelise(func))
    return module


def is_kernel(symbol: str) -> bool:
    """Whether a function is one of the catalogue's, and not TVM's lowering."""
    return find_row(symbol) is not None


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


def kernel_calls(module: Any) -> list[tuple[str, bool]]:
    """The calls of `main` in execution order: function name, and whether it is a kernel of ours."""
    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and str(getattr(value.op, "name", "")) == (
                "relax.call_tir"
            ):
                symbol = value.args[0].name_hint
                found.append((symbol, is_kernel(symbol)))
    return found


def output_types(module: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of everything that `main` returns."""
    ty = module["main"].body.body.ty
    fields = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
    return [(tuple(int(extent) for extent in t.shape), str(t.dtype)) for t in fields]


def build_library(module: Any, target: Any) -> bytes:
    """Compile a lowered module for Relax's virtual machine, to the bytes of a shared library.

    TVM's default pipeline looks for reshapes inside every TIR function and stops at functions that
    are not built of its blocks, as ours are not; reshapes are still operators here, so that pass
    is left out.
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
    executable = relax.build(module, target, relax_pipeline=pipeline, tir_pipeline=TIR_PIPELINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path))
        return path.read_bytes()
