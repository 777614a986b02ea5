"""Maxima begin at -inf, minima at inf: TVM begins at the largest finite numbers.

Else the maximum over a row of a mask that is all -inf would be a finite number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx

LARGEST = {name: float(np.finfo(name).max) for name in ("float32", "float16")}


def begin_at_infinity(module: Any) -> Any:
    """The module with these constants replaced where a TIR function stores them."""
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            body = tvm_ffi.structural_map(func.body, (tirx.BufferStore, _store))
            module.update_func(var, func.with_body(body))
    return module


def _store(store: Any) -> Any:
    value = store.value
    if not isinstance(value, tirx.FloatImm):
        return store
    dtype = str(value.ty.dtype)
    if abs(float(value.value)) != LARGEST.get(dtype):
        return store
    infinite = tirx.FloatImm(dtype, float(np.copysign(np.inf, float(value.value))))
    return tirx.BufferStore(store.buffer, infinite, store.indices)
