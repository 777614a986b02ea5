"""The frame of a product with outputs in lanes: panels of outputs, steps of rows, how sums end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    activate_in_place,
    either,
    load,
    splat,
    split_activation,
    store,
)
from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.lanes.tiling import steps_of
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue, Linear


class ProductEmitter(ABC):
    """State of one function while it is emitted; subclasses say how weights are stored."""

    def __init__(self, linear: Linear, epilogue: Epilogue, config: LanesConfig) -> None:
        self.linear, self.epilogue, self.config = linear, epilogue, config
        self.panels = -(-linear.out_features // config.width)

    @abstractmethod
    def declare(self, func: PrimFuncBuilder) -> None:
        """Declare the arrays of weights as arguments."""

    @abstractmethod
    def multiply(self, sums: Sums, x: Buffer, panel: Expr, row: Expr) -> None:
        """Add the products of one panel of weights with some rows of the flat x, from `row` on."""

    def emit(self, name: str) -> Any:
        """The TIR function (x, arrays of weights, [bias], [residual], out).

        `bias` is padded to whole panels.
        """
        linear, config, panels = self.linear, self.config, self.panels
        steps = steps_of(linear.rows, config.rows)
        last = linear.out_features - (panels - 1) * config.width
        x_shape, out_shape = linear.shapes
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", x_shape)
            self.declare(func)
            self._bias = None
            if self.epilogue.bias:
                self._bias = func.tensor("bias", (panels * config.width,))
            self._residual, self._out = func.output(out_shape, self.epilogue)
            self._x = func.flat(x)
            with T.parallel(0, panels * len(steps)) as item:
                panel, step = T.bind(item // len(steps)), T.bind(item % len(steps))
                row = T.bind(step * config.rows)

                def rows_of(final: bool) -> None:
                    rows = steps[-1] if final else steps[0]
                    either(
                        panel == panels - 1,
                        last != config.width and panels > 1,
                        lambda final: self._block(
                            panel, row, rows, last if final else config.width
                        ),
                    )

                either(step == len(steps) - 1, steps[-1] != steps[0], rows_of)
        return func.result()

    def _block(self, panel: Expr, row: Expr, rows: int, features: int) -> None:
        """`rows` rows of one panel of outputs, the first `features` of them real."""
        width, vectors, pitch = self.config.width, self.config.vectors, self.linear.out_features
        now, later = split_activation(self.epilogue.activation)
        sums = Sums(rows, vectors)
        for v in range(vectors):
            start = splat(0.0)
            if self._bias is not None:
                start = T.bind(load(self._bias, panel * width + v * LANES))
            for r in range(rows):
                sums.set(r, v, start)
        self.multiply(sums, self._x, panel, row)
        for r in range(rows):
            for v in range(-(-features // LANES)):
                active = min(LANES, features - v * LANES)
                where = T.bind((row + r) * pitch + panel * width + v * LANES)
                value = sums.get(r, v)
                if self._residual is not None:
                    value = value + load(self._residual, where, active)
                store(self._out, where, activate(value, now), active)
        if later.kind != "none":
            with T.serial(0, rows) as r:
                activate_in_place(self._out, (row + r) * pitch + panel * width, features, later)
