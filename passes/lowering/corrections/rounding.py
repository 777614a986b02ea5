"""Quantisation as onnxruntime computes it.

As TVM's own, halves are rounded to even and what is out of range saturates. NaN becomes the lowest
value, where TVM's maxima would hand it on to a conversion that is undefined.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from nmcompile.passes.lowering.view import constant

QUANTISE = "relax.quantize"
"""The operator that `quantise` legalises."""


def quantise(builder: Any, call: Any) -> Any:
    """The call in TIR; for `relax.transform.LegalizeOps`."""
    axis, dtype = int(call.attrs.axis), str(call.attrs.out_dtype)
    data, *parameters = call.args

    def compute(x: Any, *given: Any) -> Any:
        def element(*indices: Any) -> Any:
            scale, zero = (_at(parameter, indices, axis) for parameter in given)
            counted = te.round(x[indices] / scale) + zero.astype("float32")
            least, most = (
                limit.astype("float32") for limit in (tirx.min_value(dtype), tirx.max_value(dtype))
            )
            # NaN is not above anything; maxima and minima hand it on, see `nmcompile.kernels.nan`.
            bounded = tirx.Select(counted > least, te.min(counted, most), least)
            return bounded.astype(dtype)

        return te.compute(x.shape, element, name="quantized")

    values = [_single(parameter) for parameter in parameters]
    return builder.call_te(compute, data, *values, primfunc_name_hint="quantize")


def _single(parameter: Any) -> Any:
    """A constant of one number as that number, which is then part of the code."""
    value = constant(parameter)
    if value is None or value.size != 1:
        return parameter
    number = value.reshape(())
    if number.dtype.kind == "f":
        return tirx.FloatImm(number.dtype.name, float(number))
    return tirx.IntImm(number.dtype.name, int(number))


def _at(parameter: Any, indices: Any, axis: int) -> Any:
    if not isinstance(parameter, te.Tensor):
        return parameter
    single = all(int(extent) == 1 for extent in parameter.shape)
    return parameter[(0,) * len(parameter.shape) if single else indices[axis]]
