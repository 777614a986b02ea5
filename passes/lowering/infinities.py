"""Maxima begin at -inf, minima at inf: TVM begins at the largest finite numbers.

Else the maximum over a row of a mask that is all -inf would be a finite number. On CPUs only: TVM
divides a reduction among the threads of a GPU by rules that know the finite numbers alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi
from tvm import s_tir, tirx

LARGEST = {name: float(np.finfo(name).max) for name in ("float32", "float16")}


def begin_at_infinity(module: Any) -> Any:
    """The module with these constants replaced where a reduction begins with them.

    A mask may be filled with the same numbers: there they mean themselves.
    """
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            body = tvm_ffi.structural_map(func.body, (s_tir.SBlock, _begin))
            module.update_func(var, func.with_body(body))
    return module


def _begin(block: Any) -> Any:
    if block.init is None:
        return block
    init = tvm_ffi.structural_map(block.init, (tirx.BufferStore, _store))
    return s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, block.body, init,
        block.alloc_buffers, block.match_buffers, block.annotations, block.span,
    )  # fmt: skip


def _store(store: Any) -> Any:
    value = store.value
    if not isinstance(value, tirx.FloatImm):
        return store
    dtype = str(value.ty.dtype)
    if abs(float(value.value)) != LARGEST.get(dtype):
        return store
    infinite = tirx.FloatImm(dtype, float(np.copysign(np.inf, float(value.value))))
    return tirx.BufferStore(store.buffer, infinite, store.indices)
