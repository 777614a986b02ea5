"""Kernels call twins where they would name an instruction."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script import builder as T
from tvm_ffi import ObjectConvertible

from nmcompile.kernels.avx512_bf16 import emit as brain
from nmcompile.kernels.prim_func import PrimFuncBuilder
from tests.support.twins.instructions import BRAIN, TWINS

Expr = Any
_called = set[str]()


def replace_calls() -> None:
    """Of all kernels that this process writes from now on."""
    _replace_calls("call_llvm_intrin")
    _replace_calls("call_llvm_pure_intrin")
    _bring_text()
    brain._TEXT = BRAIN


def _replace_calls(spelling: str) -> None:
    instruction = getattr(T, spelling)

    def call(dtype: str, name: str, *operands: Expr, **options: Any) -> Expr:
        if name not in TWINS:
            return instruction(dtype, name, *operands, **options)
        _called.add(name)
        return T.call_extern(dtype, TWINS[name].name, *map(_plain, operands))

    setattr(T, spelling, call)


def _plain(operand: Expr) -> Expr:
    """A mask as zeros and ones of four bytes: vectors of bits are no arguments."""
    operand = operand.asobject() if isinstance(operand, ObjectConvertible) else operand
    kind = tvm.DataType(operand.ty.dtype)
    if kind.type_code != tvm.DataTypeCode.BOOL:
        return operand
    one, zero = (T.broadcast(T.int32(value), kind.lanes) for value in (1, 0))
    return T.Select(operand, one, zero)


def _bring_text() -> None:
    """Functions carry the definitions of the twins that they call."""
    result = PrimFuncBuilder.result

    def with_twins(self: PrimFuncBuilder) -> Any:
        func = result(self)
        body = func.body
        for name in sorted(_called):
            text = tvm.ir.StringImm(TWINS[name].text)
            body = tirx.AttrStmt(T.int32(0), "pragma_import_llvm", text, body)
        _called.clear()
        return func.with_body(body)

    PrimFuncBuilder.result = with_twins  # type: ignore[method-assign]
