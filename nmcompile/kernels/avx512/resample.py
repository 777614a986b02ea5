"""Images of another size: nearest neighbours, and sums over some of them, along both axes.

A vector of the result is made of 16 consecutive columns of x: those of each row that it is made of
are added up, and a permutation per term picks columns of the sum. Which ones, and the weights,
stand in arrays, so that kernels differ by shapes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, held, lanes, load, splat, store
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Resample, Taps

REACH = LANES  # columns of x that a vector of the result can be made of


@dataclass(frozen=True)
class Terms:
    """How many there are along an axis, and whether they have weights."""

    count: int
    weighted: bool

    @classmethod
    def of(cls, taps: Taps) -> Terms:
        """Those of a map."""
        return cls(len(taps.places), any(weight is not None for weight in taps.weights))


def reach_of(taps: Taps) -> int:
    """Of how many consecutive elements each vector of the result is made, at most."""
    places = np.array(taps.places)
    starts = range(0, places.shape[1], LANES)
    return max(int(np.ptp(places[:, start : start + LANES])) + 1 for start in starts)


def refuse_resample(problem: Problem) -> str | None:
    """Vectors whose columns lie too far apart."""
    spec = problem.spec
    assert isinstance(spec, Resample)
    reach = reach_of(spec.across)
    if reach <= REACH:
        return None
    return f"{LANES} columns of the result are made of {reach}: the kernel reads at most {REACH}"


def lower_resample(name: str, problem: Problem, config: None) -> Lowered:
    """Any two maps whose columns lie close together."""
    spec = problem.spec
    assert isinstance(spec, Resample)
    down, across = Terms.of(spec.down), Terms.of(spec.across)
    arrays: dict[str, npt.NDArray[Any]] = {"rows": np.array(spec.down.places, np.int32).reshape(-1)}
    if down.weighted:
        arrays["row_weights"] = _weights(spec.down).reshape(-1)
    columns = np.array(spec.across.places, np.int32)
    padded = np.pad(columns, [(0, 0), (0, -columns.shape[1] % LANES)], mode="edge")
    vectors = padded.reshape(len(columns), -1, LANES)
    starts = np.minimum(vectors.min((0, 2)), max(spec.shape[-1] - LANES, 0))
    arrays["starts"] = starts.astype(np.int32)
    arrays["columns"] = (vectors - starts[:, None]).astype(np.int32).reshape(-1)
    if across.weighted:
        weights = _weights(spec.across)
        missing = padded.shape[1] - weights.shape[1]
        arrays["column_weights"] = np.pad(weights, [(0, 0), (0, missing)]).reshape(-1)
    return Lowered(emit_resample, (name, spec.shape, spec.out_shape, down, across), arrays)


def _weights(taps: Taps) -> npt.NDArray[np.float32]:
    """All of them, (terms, outputs)."""
    ones = (1.0,) * len(taps.places[0])
    return np.array([ones if weight is None else weight for weight in taps.weights], np.float32)


def emit_resample(
    name: str, shape: tuple[int, ...], out_shape: tuple[int, ...], down: Terms, across: Terms
) -> Any:
    """The TIR function (x, rows, [row_weights], starts, columns, [column_weights], out).

    rows: of x for each row of the result, (term, row). starts: of each vector, the first column of
    x. columns: counted from there, (term, column).
    """
    *lead, height, width = shape
    out_height, out_width = out_shape[-2:]
    full, rest = divmod(out_width, LANES)
    vectors = full + bool(rest)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", shape)
        rows = func.tensor("rows", (down.count * out_height,), "int32")
        gains = _optional(func, "row_weights", down, out_height)
        starts = func.tensor("starts", (vectors,), "int32")
        columns = func.tensor("columns", (across.count * vectors * LANES,), "int32")
        weights = _optional(func, "column_weights", across, vectors * LANES)
        out = func.tensor("out", out_shape)
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, math.prod(lead) * out_height) as line:
            row = T.bind(line % out_height)
            image = T.bind(line // out_height * (height * width))
            at = [term * out_height + row for term in range(down.count)]
            sources = [T.bind(image + rows[place] * width) for place in at]
            factors = [None if gains is None else held(splat(gains[place])) for place in at]

            def vector(v: Expr, active: int) -> None:
                start = T.bind(starts[v])
                read = [load(x, source + start, min(width, LANES)) for source in sources]
                window = held(_sum(read, factors))
                places = [lanes((term * vectors + v) * LANES) for term in range(across.count)]
                picked = [_picked(window, columns[place]) for place in places]
                given = [None if weights is None else weights[place] for place in places]
                store(out, line * out_width + v * LANES, _sum(picked, given), active)

            if full:
                with T.serial(0, full) as v:
                    vector(v, LANES)
            if rest:
                vector(T.int32(full), rest)
    return func.result()


def _optional(func: PrimFuncBuilder, name: str, terms: Terms, size: int) -> Buffer | None:
    return func.tensor(name, (terms.count * size,)) if terms.weighted else None


def _sum(values: list[Expr], weights: list[Expr | None]) -> Expr:
    terms = [
        value if weight is None else value * weight
        for value, weight in zip(values, weights, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _picked(window: Expr, places: Expr) -> Expr:
    name = "llvm.x86.avx512.permvar.sf.512"
    return T.bind(T.call_llvm_pure_intrin("float32x16", name, window, places))
