"""Which values of a function are integers that stand for real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.passes.lowering.integers.constants import read_quantised
from nmcompile.passes.lowering.view import Expr, FunctionView, constant

SIGN = 128  # what is added to a signed value so that it is unsigned


@dataclass(frozen=True)
class Quantisation:
    """Real number (q - zero) * scale of a stored u8 value q; signed ones are stored as q + 128."""

    scale: float
    zero: int
    signed: bool

    def stored(self, real: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """The stored values of real numbers, as QuantizeLinear computes them.

        Of NaN it is the lowest, as onnxruntime has it.
        """
        steps = np.rint(np.asarray(real, np.float32) / np.float32(self.scale)) + self.zero
        return np.asarray(np.clip(np.nan_to_num(steps, nan=0.0), 0, 255), np.uint8)

    @property
    def numbers(self) -> npt.NDArray[np.float32]:
        """The real numbers of the 256 stored values."""
        steps = (np.arange(256) - self.zero).astype(np.float32)
        return np.asarray(steps * np.float32(self.scale))


@dataclass(frozen=True, eq=False)
class Quantised:
    """A variable of u8 or s8 and what it stands for."""

    var: Expr
    meaning: Quantisation


class QuantisedView(FunctionView):
    """Definitions and uses of one function, with the integers among its values."""

    def quantised(self, expr: Expr) -> Quantised | None:
        """The integers that a real value is made of: it is a `dequantize` of one scale."""
        call = self.definitions.get(expr)
        if call is None or self.op(expr) != "dequantize" or constant(call.args[0]) is not None:
            return None
        meaning = _meaning(call, str(call.args[0].ty.dtype))
        return None if meaning is None else Quantised(call.args[0], meaning)

    def rounding(self, var: Expr) -> Quantisation | None:
        """What a value is rounded to: it is a `quantize` of one scale."""
        call = self.definitions.get(var)
        if call is None or self.op(var) != "quantize":
            return None
        return _meaning(call, str(var.ty.dtype))

    def weight(self, expr: Expr) -> npt.NDArray[Any] | None:
        """The real numbers of a constant weight, or None."""
        known = self.integer_weight(expr)
        return super().weight(expr) if known is None else known.real

    def integer_weight(self, expr: Expr) -> QuantisedConstant | None:
        """The integers behind a weight, or None."""
        return read_quantised(self.definitions.get(expr, expr))

    def source(self, var: Expr) -> Expr:
        """What the operator of a variable reads first."""
        return self.args(var)[0]


def _meaning(call: Any, dtype: str) -> Quantisation | None:
    if not isinstance(call, relax.Call) or dtype not in ("uint8", "int8"):
        return None
    scale, zero = constant(call.args[1]), constant(call.args[2])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    signed = dtype == "int8"
    value = float(scale.reshape(-1)[0])
    if not (np.isfinite(value) and value > 0):
        return None
    return Quantisation(value, int(zero.reshape(-1)[0]) + SIGN * signed, signed)
