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
MARGIN = "pad_temp"  # what TVM calls the block around the image of a pooling


def begin_at_infinity(module: Any) -> Any:
    """The module with these constants replaced where a reduction begins with them.

    And around the images of poolings. A mask may be filled with the same numbers: there they mean
    themselves.
    """
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            body = tvm_ffi.structural_map(func.body, (s_tir.SBlock, _begin))
            module.update_func(var, func.with_body(body))
    return module


def _begin(block: Any) -> Any:
    body, init = block.body, block.init
    if init is not None:
        init = tvm_ffi.structural_map(init, (tirx.FloatImm, _infinite))
    elif str(block.name_hint).startswith(MARGIN):
        body = tvm_ffi.structural_map(body, (tirx.FloatImm, _infinite))
    else:
        return block
    return s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, body, init,
        block.alloc_buffers, block.match_buffers, block.annotations, block.span,
    )  # fmt: skip


def _infinite(value: Any) -> Any:
    dtype, number = str(value.ty.dtype), float(value.value)
    if abs(number) != LARGEST.get(dtype):
        return value
    return tirx.FloatImm(dtype, float(np.copysign(np.inf, number)))
