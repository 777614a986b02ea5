"""Positions of maxima and minima, as torch has them: of the first NaN where there is one.

TVM compares with the largest finite numbers and position -1, which is what it finds where
everything is NaN or infinite. Here it compares integers in the order of the floats instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx, topi

Expr = Any

_LOWEST, _HIGHEST = (int(limit) for limit in (np.iinfo("int32").min, np.iinfo("int32").max))


def legalize_positions(builder: Any, call: Expr) -> Expr:
    """`relax.argmax` and `relax.argmin` as a call of a TIR function."""
    largest = str(call.op.name) == "relax.argmax"
    axis = call.attrs.axis

    def positions(data: Any) -> Any:
        search = topi.argmax if largest else topi.argmin
        if str(data.dtype).startswith("float"):
            data = _ordered(topi.cast(data, "float32"), _HIGHEST if largest else _LOWEST)
        return search(data, None if axis is None else int(axis), bool(call.attrs.keepdims))

    return builder.call_te(positions, call.args[0], primfunc_name_hint=str(call.op.name)[6:])


def _ordered(data: Any, nan: int) -> Any:
    """Integers that are ordered as floats are, both zeros being 0, with one of them for NaN.

    The bits of floats are so already, but for those of negative ones, which have to be inverted.
    """

    def integer(*at: Any) -> Expr:
        value = data(*at)
        bits = tirx.reinterpret("int32", value)
        inverted = bits ^ ((bits >> 31) & tirx.IntImm("int32", _HIGHEST))
        number = tirx.Select(
            tirx.EQ(bits, tirx.IntImm("int32", _LOWEST)), tirx.IntImm("int32", 0), inverted
        )
        return tirx.Select(tirx.isnan(value), tirx.IntImm("int32", nan), number)

    return te.compute(data.shape, integer, name="ordered")
