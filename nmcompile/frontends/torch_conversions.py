"""Conversions of operators that TVM's importer lacks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import arguments_of

Conversion = Callable[[fx.Node, Any], Any]
"""Takes a node and the importer; returns the Relax variable."""


def conversions() -> dict[str, Conversion]:
    """By operator, what gives the Relax variable of a node; for the importer."""
    from tvm import relax

    return {
        "amax.default": _extreme(relax.op.max),
        "amin.default": _extreme(relax.op.min),
        "quantize_per_tensor.default": _quantise,
        "quantize_per_channel.default": _quantise,
        "dequantize_per_tensor.default": _dequantise,
        "dequantize_per_channel.default": _dequantise,
    }


def _extreme(reduce: Callable[..., Any]) -> Conversion:
    def convert(node: fx.Node, importer: Any) -> Any:
        given = arguments_of(node)
        axes = list(given["dim"]) or None
        value = importer.env[given["self"]]
        return importer.block_builder.emit(reduce(value, axes, given["keepdim"]))

    return convert


def _quantise(node: fx.Node, importer: Any) -> Any:
    """A range that is narrower than the dtype is one of the real numbers before."""
    from tvm import relax

    given, emit = arguments_of(node), importer.block_builder.emit
    value, dtype = importer.env[given["input"]], _name(given["dtype"])
    scale, zero, axis = _steps(given, importer)
    info = np.iinfo(dtype)
    limits = given["quant_min"], given["quant_max"]
    if limits != (info.min, info.max):
        first, last = (_real(limit, given) for limit in limits)
        value = emit(relax.op.minimum(emit(relax.op.maximum(value, first)), last))
    return emit(relax.op.quantize(value, scale, zero, axis=axis, out_dtype=dtype))


def _dequantise(node: fx.Node, importer: Any) -> Any:
    from tvm import relax

    given = arguments_of(node)
    scale, zero, axis = _steps(given, importer)
    value = importer.env[given["input"]]
    return importer.block_builder.emit(
        relax.op.dequantize(value, scale, zero, axis=axis, out_dtype="float32")
    )


def _steps(given: dict[str, Any], importer: Any) -> tuple[Any, Any, int]:
    """Scale, zero point and axis: constants of one number, or one for each slice."""
    from tvm import relax

    dtype = _name(given["dtype"])
    if "scales" in given:
        found = (importer.env[given[name]] for name in ("scales", "zero_points"))
        return (*found, int(given["axis"]))
    rank = len(given["input"].meta["val"].shape)
    scale, zero = relax.const(given["scale"], "float32"), relax.const(given["zero_point"], dtype)
    return scale, zero, min(1, rank - 1)


def _real(limit: int, given: dict[str, Any]) -> Any:
    """What an integer stands for."""
    from tvm import relax

    steps = np.float32(limit - given["zero_point"])
    return relax.const(steps * np.float32(given["scale"]), "float32")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
