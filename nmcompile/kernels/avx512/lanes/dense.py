"""Products with all weights: every input feeds as many multiply-adds as there are sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, splat
from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.lanes.product import ProductEmitter
from nmcompile.kernels.avx512.sums import Sums
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue, Linear


def pack_dense(weight: npt.NDArray[np.float32], config: LanesConfig) -> npt.NDArray[np.float32]:
    """(out, in) to panels of `width` outputs, (ceil(out / width), in, width), zero-padded."""
    panels = -(-weight.shape[0] // config.width)
    padded = np.zeros((panels * config.width, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    split = padded.reshape(panels, config.width, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 1)).reshape(-1)


def emit_dense(name: str, linear: Linear, epilogue: Epilogue, config: LanesConfig) -> Any:
    """The TIR function (x, values, [bias], [residual], out)."""
    return DenseEmitter(linear, epilogue, config).emit(name)


class DenseEmitter(ProductEmitter):
    """Panels of all weights."""

    def declare(self, func: PrimFuncBuilder) -> None:
        """See `ProductEmitter`."""
        size = self.panels * self.linear.in_features * self.config.width
        self._values = func.tensor("values", (size,))

    def multiply(self, sums: Sums, x: Buffer, panel: Expr, row: Expr) -> None:
        """See `ProductEmitter`."""
        inputs, width = self.linear.in_features, self.config.width
        with T.serial(0, inputs) as i:
            base = T.bind((panel * inputs + i) * width)
            weights = [T.bind(load(self._values, base + v * LANES)) for v in range(sums.vectors)]
            for r in range(sums.rows):
                scalar = T.bind(splat(x[(row + r) * inputs + i]))
                for v, weight in enumerate(weights):
                    sums.add(r, v, scalar * weight)
