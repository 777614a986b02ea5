"""Layer norm: (x - mean) / sqrt(variance + epsilon), times a scale, plus a shift; RMS norm."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, first_lanes, load, splat
from nmcompile.kernels.avx512.rowwise.sweep import mean_over, sweep
from nmcompile.kernels.avx512.writing import REALS, Writing
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import LayerNorm


def emit_layer_norm(name: str, spec: LayerNorm, writing: Writing = REALS) -> Any:
    """The TIR function (x, [scale], [shift], ..., out), with what `writing` needs.

    The variance is the mean of (x - mean)^2, in a second sweep over the row: that of x^2 less
    mean^2 would be lost where the mean is large.
    """
    rows, length = spec.rows, spec.features
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", spec.shape)
        scale = func.tensor("scale", (length,)) if spec.scale else None
        shift = func.tensor("shift", (length,)) if spec.shift else None
        write = writing.declare(func)
        out = func.tensor("out", spec.shape, writing.dtype)
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, rows) as row:
            start = T.bind(row * length)
            mean = None
            if spec.centred:
                mean = T.bind(mean_over(length, lambda at, active: load(x, start + at, active)))

            def centred(at: Expr, active: int) -> Expr:
                value = T.bind(load(x, start + at, active))
                return value if mean is None else T.bind(value + mean * splat(-1.0))

            def square(at: Expr, active: int) -> Expr:
                value = centred(at, active)
                if active < LANES and mean is not None:
                    value = T.bind(T.Select(first_lanes(active), value, splat(0.0)))
                return value * value

            variance = mean_over(length, square)
            factor = T.bind(splat(1.0) / tirx.op.sqrt(variance + splat(spec.epsilon)))

            def finish(at: Expr, lane: int, active: int) -> None:
                value = centred(at, active) * factor
                if scale is not None:
                    value = value * load(scale, at, active)
                if shift is not None:
                    value = value + load(shift, at, active)
                write(out, start + at, value, active)

            sweep(length, finish)
    return func.result()
