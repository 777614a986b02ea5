"""How the steps of an LSTM or GRU stand in Relax, which has no operator for them.

A call of a function that is nowhere, whose name says what it computes: where no kernel takes it,
nothing does. It reads x, the weight, the bias if there is one, and the states to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from nmcompile.kernels.recurrence import Recurrent
from nmcompile.passes.lowering.view import Expr, constant, shape_of

NAME = "recurrent"
"""The first word of the function's name, and what `FunctionView.op` says."""


def recurrent_call(
    inputs: Sequence[Expr], kind: str, direction: str, *, cells: bool, reset_first: bool
) -> Any:
    """The call.

    Args:
        inputs: x, the weight, the bias, and state and cell to begin with; None for what is not
            there.
        kind: see `Recurrent`, as for the following.
        direction: which.
        cells: whether they are asked for.
        reset_first: whether the state is reset first.
    """
    x, weight, bias, *first = inputs
    initial = any(value is not None for value in first)
    flags = _flags(initial=initial, cells=cells, bias=bias is not None, reset_first=reset_first)
    words = (NAME, kind, direction, *flags)
    given = [value for value in inputs if value is not None]
    spec = _spec(words, shape_of(x) or (), shape_of(weight) or ())
    out = relax.TensorType(spec.out_shape, "float32")
    return relax.op.call_dps_packed(":".join(words), relax.Tuple(given), out)


def read_call(
    call: Expr,
) -> tuple[Recurrent, list[Expr], npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """What it computes, the tensors that it reads, its weight and its bias."""
    words = str(call.args[0].global_symbol).split(":")
    x, matrix, *first = call.args[1].fields
    bias = constant(first.pop(0)) if "bias" in words else None
    weight = constant(matrix)
    assert weight is not None
    return _spec(words, shape_of(x) or (), weight.shape), [x, *first], weight, bias


def _flags(**given: bool) -> list[str]:
    return [name for name, holds in given.items() if holds]


def _spec(words: Sequence[str], x: tuple[int, ...], weight: tuple[int, ...]) -> Recurrent:
    _, kind, direction, *flags = words
    steps, batch, _ = x
    return Recurrent(
        kind, steps, batch, weight[1], direction,  # type: ignore[arg-type]
        initial="initial" in flags, cells="cells" in flags, reset_first="reset_first" in flags,
    )  # fmt: skip
