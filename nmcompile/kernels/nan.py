"""Maximum and minimum as torch has them: NaN where either operand is.

TVM writes max(a, b) as a > b ? a : b on a CPU, which is NaN where b is, and as CUDA's max on a GPU,
which never is unless both are. A constant as the first operand makes the first form right at no
cost: vmaxps does just that. Two values take a comparison more, and PTX has an instruction.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.script import builder as T

Expr = Any


def _cuda(name: str) -> str:
    """A function around the instruction of PTX, which CUDA has no name for (9.7.3)."""
    return f"""
__forceinline__ __device__ float nmc_{name}_nan(float a, float b) {{
  float result;
  asm("{name}.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}}
"""


def _either(kind: Any, a: Expr, b: Expr) -> Expr:
    """NaN where b is, by the order of the operands; where a is, by a comparison."""
    name = tirx.Var("a", a.ty)
    return tirx.Let(name, a, tirx.Select(T.isnan(name), name, kind(name, b)))


def _is_number(value: Expr) -> bool:
    """Whether an operand is a constant, and not NaN."""
    if isinstance(value, tirx.Broadcast):
        return _is_number(value.value)
    return isinstance(value, tirx.FloatImm) and not math.isnan(float(value.value))


def _on_cpu(value: Expr) -> Expr:
    if not str(value.ty.dtype).startswith(("float", "bfloat")):
        return value
    kind = type(value)
    if _is_number(value.a):
        return value
    if _is_number(value.b):
        return kind(value.b, value.a)
    return _either(kind, value.a, value.b)


def _on_gpu(value: Expr) -> Expr:
    dtype = str(value.ty.dtype)
    if not dtype.startswith(("float", "bfloat")):
        return value
    lanes = range(int(value.ty.dtype.lanes))
    if len(lanes) > 1:  # the instruction takes single numbers
        pairs = [[tirx.Shuffle([v], [lane]) for v in (value.a, value.b)] for lane in lanes]
        return tirx.Shuffle([_on_gpu(type(value)(*pair)) for pair in pairs], list(lanes))
    name = "max" if isinstance(value, tirx.Max) else "min"
    a, b = (v if dtype == "float32" else T.Cast("float32", v) for v in (value.a, value.b))
    result = T.cuda.func_call(
        f"nmc_{name}_nan", a, b, source_code=_cuda(name), return_type="float32"
    )
    return result if dtype == "float32" else T.Cast(dtype, result)


def _mapped(func: Any, change: Any) -> Any:
    return func.with_body(tvm_ffi.structural_map(func.body, ((tirx.Max, tirx.Min), change)))


@tvm.tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def keep_nan_on_cpu(func: Any, module: Any, context: Any) -> Any:
    """Make every maximum and minimum of floats hand NaN on."""
    return _mapped(func, _on_cpu)


@tvm.tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
def keep_nan_on_gpu(func: Any, module: Any, context: Any) -> Any:
    """The same in the code of a GPU."""
    return _mapped(func, _on_gpu)
