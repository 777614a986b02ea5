"""TVM's own lowering for what no kernel of ours computes, fused and run on all threads.

TVM leaves such functions as serial loops on a CPU. The spatial loops of each are fused and run in
parallel; LLVM vectorises the innermost ones.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.ir import TensorLoad

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.kernels.avx512.join import NAME as JOIN
from nmcompile.kernels.catalog import find_row
from nmcompile.passes.lowering.corrections.elementary import as_arithmetic, has_arithmetic
from nmcompile.passes.lowering.corrections.exact import keep_exact
from nmcompile.passes.lowering.corrections.infinities import begin_at_infinity
from nmcompile.passes.lowering.corrections.positions import legalize_positions
from nmcompile.passes.lowering.corrections.rounding import QUANTISE, quantise
from nmcompile.passes.lowering.naming import name_by_content

# Operators to the end: the VM passes the same memory on.
VIEWS = ["relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset"]
RUNNABLE = {*VIEWS, "relax.call_tir", "relax.call_tir_inplace", "relax.call_pure_packed"}
LEGALIZE = {
    QUANTISE: quantise,
    "relax.argmax": legalize_positions,
    "relax.argmin": legalize_positions,
}
MIN_PARALLEL = 8192  # elements; below, waking the threads costs more than it gains


def lower_fallback(module: Any) -> Any:
    """Legalise, fuse and schedule every operator that is still a Relax call."""
    module = begin_at_infinity(fuse_operators(module))
    for var, func in module.functions_items():
        if is_others(var, func):
            module.update_func(var, _parallelise(as_arithmetic(func)))
    return name_by_content(module)


def fuse_operators(module: Any) -> Any:
    """Turn every operator that is still a Relax call into TIR, with what can be fused behind it."""
    entries = [
        var.name_hint for var, func in module.functions_items() if isinstance(func, relax.Function)
    ]
    passes = tvm.transform.Sequential(
        [
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(entries),
        ]
    )
    legal = relax.transform.LegalizeOps(LEGALIZE, skip_ops=VIEWS)(module)
    _refuse_operators(legal)
    for var, func in legal.functions_items():
        if is_others(var, func):
            legal.update_func(var, keep_exact(func))
    return passes(legal)


def _refuse_operators(module: Any) -> None:
    """Refuse operators that TVM has code for on other targets only: building would fail on them."""
    for _, func in module.functions_items():
        if not isinstance(func, relax.Function):
            continue
        for block in func.body.blocks:
            for binding in block.bindings:
                operator = getattr(binding.value, "op", None)
                name = str(getattr(operator, "name", ""))
                if name.startswith("relax.") and name not in RUNNABLE:
                    raise UnsupportedOperatorError(
                        f"the model cannot be compiled: TVM imports one of its operators as {name} "
                        f"({binding.var.name}), which it has no code for on this target; express "
                        "it with other operators, or leave that part out of the exported model"
                    )


def is_others(var: Any, func: Any) -> bool:
    """Whether a function is TVM's lowering of operators, without a schedule."""
    ours = is_kernel(var.name_hint) or var.name_hint.startswith(JOIN)
    return isinstance(func, tirx.PrimFunc) and not ours


def is_kernel(symbol: str) -> bool:
    """Whether a function is one of the catalogue's, and not TVM's lowering."""
    return find_row(symbol) is not None


def _parallelise(func: Any) -> Any:
    """Inline what is only passed on, then run the outer spatial loops of each block in parallel."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        root = schedule.get_sblock("root")
    except s_tir.ScheduleError:
        return func  # written as plain loops, as scattering is
    for block in schedule.get_child_blocks(root):
        if has_arithmetic(schedule.get(block)) and not _is_read_once(schedule, block):
            continue  # whoever reads it would compute it for every time that it does
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


def _is_read_once(schedule: Any, block: Any) -> bool:
    """Whether one block reads what another writes, and no more often than there are elements.

    Not where it computes such a function itself: TVM writes out what is inside again and again.
    """
    consumers = schedule.get_consumers(block)
    if len(consumers) != 1:
        return False
    (written,), reader = schedule.get(block).writes, schedule.get(consumers[0])
    if has_arithmetic(reader):
        return False
    loads: list[Any] = []
    tvm_ffi.structural_walk(reader.body, (TensorLoad, loads.append))
    places = sum(bool(load.source.same_as(written.source)) for load in loads)
    times = math.prod(int(var.dom.extent) for var in reader.iter_vars)
    return places == 1 and times <= math.prod(map(int, written.source.shape))


def output_types(module: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of everything that `main` returns."""
    ty = module["main"].body.body.ty
    fields = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
    return [(tuple(int(extent) for extent in t.shape), str(t.dtype)) for t in fields]


def machine_pipeline(*extra: Any) -> Any:
    """From calls of TIR functions to the virtual machine; `extra` runs once memory is planned."""
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            *extra,
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
