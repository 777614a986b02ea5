"""Matrix product with constant weights, all of them: vectors run over output features."""

from __future__ import annotations

from collections.abc import Callable

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
from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.lanes.tiling import steps_of
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue, Linear


def pack_linear(weight: npt.NDArray[np.float32], config: LanesConfig) -> npt.NDArray[np.float32]:
    """(out, in) to panels of `width` outputs, (ceil(out / width), in, width), zero-padded."""
    panels = -(-weight.shape[0] // config.width)
    padded = np.zeros((panels * config.width, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    split = padded.reshape(panels, config.width, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 1)).reshape(-1)


def emit_linear(name: str, linear: Linear, epilogue: Epilogue, config: LanesConfig) -> object:
    """The TIR function (x, values, [bias], [residual], out); bias padded to whole panels."""
    width, vectors = config.width, config.vectors
    panels = -(-linear.out_features // width)
    steps = steps_of(linear.rows, config.rows)
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
            """`rows` rows of one panel of outputs, the first `features` of them real."""
            acc = T.alloc_buffer((rows * width,), scope="local")

            def at(r: int, v: int) -> Expr:
                return lanes((r * vectors + v) * LANES)

            for r in range(rows):
                for v in range(vectors):
                    start = splat(0.0) if bias is None else load(bias, panel * width + v * LANES)
                    T.buffer_store(acc, start, [at(r, v)])
            with T.serial(0, linear.in_features) as i:
                base = T.bind((panel * linear.in_features + i) * width)
                weights = [T.bind(load(values, base + v * LANES)) for v in range(vectors)]
                for r in range(rows):
                    scalar = T.bind(splat(x[(row + r) * linear.in_features + i]))
                    for v in range(vectors):
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

        def either(condition: Expr, differs: bool, one: Callable[[bool], None]) -> None:
            """What `one` emits for the last of something, and for the others if it differs."""
            if not differs:
                one(True)
                return
            with T.If(condition):
                with T.Then():
                    one(True)
                with T.Else():
                    one(False)

        with T.parallel(0, panels * len(steps)) as item:
            panel, step = T.bind(item // len(steps)), T.bind(item % len(steps))
            row = T.bind(step * config.rows)

            def rows_of(final: bool) -> None:
                rows = steps[-1] if final else steps[0]
                either(
                    panel == panels - 1,
                    last != width and panels > 1,
                    lambda final: block(panel, row, rows, last if final else width),
                )

            either(step == len(steps) - 1, steps[-1] != steps[0], rows_of)
    return func.result()
