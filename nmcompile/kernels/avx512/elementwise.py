"""Activations of tensors that no product goes before."""

from __future__ import annotations

import math
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, activate, load, store
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Activation, Elementwise

PIECE = 256  # vectors that one work item computes: some microseconds
TOGETHER = 2  # vectors, so that what one waits for is covered by the other


def lower_elementwise(name: str, problem: Problem, config: None) -> Lowered:
    """The activation of the epilogue."""
    spec = problem.spec
    assert isinstance(spec, Elementwise)
    return Lowered(emit_elementwise, (name, spec, problem.epilogue.activation), {})


def emit_elementwise(name: str, spec: Elementwise, activation: Activation) -> Any:
    """The TIR function (x, out)."""
    size = math.prod(spec.shape)
    pieces, rest = divmod(size, PIECE * LANES)
    with PrimFuncBuilder(name) as func:
        x, out = func.tensor("x", spec.shape), func.tensor("out", spec.shape)
        x, out = func.flat(x), func.flat(out)

        def compute(first: Any, vectors: int) -> None:
            with T.serial(0, vectors) as v:
                at = T.bind(first + v * LANES)
                store(out, at, activate(load(x, at), activation))

        def pairs(first: Any, vectors: int) -> None:
            with T.serial(0, vectors // TOGETHER) as v:
                at = [T.bind(first + (v * TOGETHER + k) * LANES) for k in range(TOGETHER)]
                values = [T.bind(activate(load(x, place), activation)) for place in at]
                for place, value in zip(at, values, strict=True):
                    store(out, place, value)

        if pieces:
            with T.parallel(0, pieces) as piece:
                pairs(T.bind(piece * (PIECE * LANES)), PIECE)
        first = pieces * PIECE * LANES
        if rest >= LANES:
            compute(first, rest // LANES)
        if rest % LANES:
            last, active = size - rest % LANES, rest % LANES
            store(out, last, activate(load(x, last, active), activation), active)
    return func.result()
