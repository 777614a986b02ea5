"""Matrix product with constant weights (the classifier): vectors run over output features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Expr,
    activate,
    activate_in_place,
    lanes,
    load,
    splat,
    split_activation,
    store,
)
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Lowered, Problem, with_bias
from nmcompile.kernels.spec import Epilogue, Linear

PANEL = 4  # vectors of output features computed together: four streams of weights
ROWS = 6  # input rows that share each loaded weight: 6 x 4 accumulators fill the registers


def pack_linear(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(out, in) to panels of 64 output features, (ceil(out / 64), in, 64), zero-padded."""
    width = PANEL * LANES
    panels = -(-weight.shape[0] // width)
    padded = np.zeros((panels * width, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    return np.ascontiguousarray(padded.reshape(panels, width, -1).transpose(0, 2, 1)).reshape(-1)


def emit_linear(name: str, linear: Linear, epilogue: Epilogue) -> object:
    """The TIR function (x, values, [bias], [residual], out); bias padded to whole panels."""
    width = PANEL * LANES
    panels = -(-linear.out_features // width)
    rows_per_step = min(ROWS, linear.rows)
    full, rest = divmod(linear.rows, rows_per_step)
    last = linear.out_features - (panels - 1) * width
    now, later = split_activation(epilogue.activation)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (*linear.lead, linear.in_features))
        values = func.tensor("values", (panels * linear.in_features * width,))
        bias = func.tensor("bias", (panels * width,)) if epilogue.bias else None
        shape = (*linear.lead, linear.out_features)
        residual, out = func.output(shape, epilogue)
        x = func.flat(x)

        def block(panel: Expr, row: Expr, rows: int, features: int) -> None:
            """`rows` rows of one panel of 64 output features, the first `features` of them real."""
            acc = T.alloc_buffer((rows * width,), scope="local")

            def at(r: int, v: int) -> Expr:
                return lanes((r * PANEL + v) * LANES)

            for r in range(rows):
                for v in range(PANEL):
                    start = splat(0.0) if bias is None else load(bias, panel * width + v * LANES)
                    T.buffer_store(acc, start, [at(r, v)])
            with T.serial(0, linear.in_features) as i:
                base = T.bind((panel * linear.in_features + i) * width)
                weights = [T.bind(load(values, base + v * LANES)) for v in range(PANEL)]
                for r in range(rows):
                    scalar = T.bind(splat(x[(row + r) * linear.in_features + i]))
                    for v in range(PANEL):
                        T.buffer_store(acc, acc[at(r, v)] + scalar * weights[v], [at(r, v)])
            for r in range(rows):
                for v in range(-(-features // LANES)):
                    active = min(LANES, features - v * LANES)
                    where = T.bind((row + r) * linear.out_features + panel * width + v * LANES)
                    value: Expr = acc[at(r, v)]
                    if residual is not None:
                        value = value + load(residual, where, active)
                    store(out, where, activate(value, now), active)
            if later.kind != "none":
                with T.serial(0, rows) as r:
                    start = (row + r) * linear.out_features + panel * width
                    activate_in_place(out, start, features, later)

        def panel_rows(panel: Expr, step: Expr, rows: int) -> None:
            row = T.bind(step * rows_per_step)
            if last == width or panels == 1:
                block(panel, row, rows, last)
                return
            with T.If(panel < panels - 1):
                with T.Then():
                    block(panel, row, rows, width)
                with T.Else():
                    block(panel, row, rows, last)

        if full:
            with T.parallel(0, panels * full) as item:
                panel_rows(T.bind(item // full), T.bind(item % full), rows_per_step)
        if rest:
            with T.parallel(0, panels) as panel:
                panel_rows(panel, T.int32(full), rest)
    return func.result()


def lower_linear(name: str, problem: Problem, config: None) -> Lowered:
    """Dense matrix product."""
    linear = problem.spec
    assert isinstance(linear, Linear) and problem.weight is not None
    width = PANEL * LANES
    bias = problem.bias
    if bias is not None:
        bias = np.pad(bias, (0, -len(bias) % width))
    args = (name, linear, problem.epilogue)
    return Lowered(emit_linear, args, with_bias(pack_linear(problem.weight), bias))
