"""Names of TIR functions that say what is in them, and what says what is in an array.

A program of the virtual machine calls functions by name. Where names go by content, equal programs
compute the same, and models share what was generated for one of them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import tirx
from tvm.relax.expr import _update_type

from nmcompile.kernels.objects import MADE_BY, identity

Content = tuple[tuple[int, ...], str, bytes]
DIGITS = 10  # of the digest behind a name
LENGTH = 100  # characters before it: names become files', which systems limit to 255


def content_name(name: str, made_by: str) -> str:
    """The name of a function that was made by what a text says.

    TVM's name of a fused function has every operator's, which may be dozens: the first are kept.
    """
    return f"{name[:LENGTH].rstrip('_')}_{identity(made_by)[:DIGITS]}"


def content_of(array: npt.NDArray[Any]) -> Content:
    """Shape, type and digest of an array: equal where it holds the same."""
    digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()
    return array.shape, str(array.dtype), digest


def name_by_content(module: Any) -> Any:
    """The module with another name for each TIR function that says by no attribute what made it.

    What TVM generated, that is: its own text says so, with every digit of its numbers.
    """
    functions = {
        var: func.with_attr(MADE_BY, tvm.ir.save_json(func))
        for var, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and MADE_BY not in (func.attrs or {})
    }
    renamed = {}
    for var, func in functions.items():
        renamed[var.name_hint] = tvm.ir.GlobalVar(content_name(var.name_hint, func.attrs[MADE_BY]))
        _update_type(renamed[var.name_hint], var.ty)

    def called(var: Any) -> Any:
        return renamed.get(var.name_hint, var)

    result = {}
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            result[called(var)] = functions.get(var, func)
        else:
            result[var] = tvm_ffi.structural_map(func, (tvm.ir.GlobalVar, called))
    return tvm.IRModule(result, attrs=module.attrs)
