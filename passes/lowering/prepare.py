"""The function that makes what entry functions take of the arrays that an artifact keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from nmcompile.kernels.problem import Prepare

PREPARE = "prepare"


@dataclass(frozen=True)
class Operand:
    """What an entry function takes behind its inputs.

    sources: names of the arrays that it is made of.
    prepare: how; None where the only one is passed on.
    """

    sources: tuple[str, ...]
    prepare: Prepare | None


def add_prepare(
    builder: Any,
    params: Mapping[str, npt.NDArray[np.generic]],
    operands: Sequence[tuple[Operand, Any]],
    function_of: Callable[[Prepare], Any],
) -> bool:
    """Add the function `PREPARE` of `params`, which returns the operands, where there is need.

    Args:
        builder: of the module.
        params: what the artifact keeps, in order.
        operands: each with its type.
        function_of: the global variable of a preparation's TIR function.

    Returns:
        Whether any operand is prepared.
    """
    if all(operand.prepare is None for operand, _ in operands):
        return False
    given = {
        name: relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        for name, array in params.items()
    }
    with builder.function(PREPARE, list(given.values())):
        with builder.dataflow():
            made = []
            for operand, ty in operands:
                sources = [given[name] for name in operand.sources]
                if operand.prepare is None:
                    made += sources
                    continue
                callee = function_of(operand.prepare)
                call = relax.call_tir(callee, relax.Tuple(sources), ty)
                made.append(builder.emit(call))
            output = builder.emit_output(relax.Tuple(made))
        builder.emit_func_output(output)
    return True
