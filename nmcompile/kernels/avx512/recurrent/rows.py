"""LSTM and GRU as rows of the catalogue: verdicts and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.lanes.config import LanesConfig, Picking
from nmcompile.kernels.avx512.lanes.dense import pack_dense
from nmcompile.kernels.avx512.lanes.listed import pack_listed
from nmcompile.kernels.avx512.lanes.picked import pack_picked
from nmcompile.kernels.avx512.lanes.rows import BLOCKS, GROUPS, MOST_INPUTS
from nmcompile.kernels.avx512.lanes.tiling import steps_of
from nmcompile.kernels.avx512.recurrent.kernel import Storage, emit_recurrent
from nmcompile.kernels.avx512.recurrent.packing import bias_by_blocks, by_panels, vectors_of
from nmcompile.kernels.problem import Array, Lowered, Problem
from nmcompile.kernels.recurrence import Recurrent
from nmcompile.kernels.verdict import refuse_pattern
from nmcompile.sparsity import NM, OneByN, Unstructured

SKIPPED = "zeros of recurrent weights are skipped in "  # opens a refusal
ROWS = 6  # of the batch, whose sums of four gates fill the registers
PICKED_ROWS = 4  # with what lanes pick from


# Times as long as with all weights for each weight that is left, with one row of the batch and with
# more; measured at 128 to 512 hidden numbers. One row is bound by reading weights.
PICKED = (1.1, 1.75)
LISTED = {4: (2.3, 5.0), 8: (1.5, 2.0), 16: (1.15, 1.25)}


def _spec(problem: Problem) -> Recurrent:
    assert isinstance(problem.spec, Recurrent)
    return problem.spec


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks that lie side by side in one gate."""
    refused = refuse_pattern(problem, (OneByN,), "1xN")
    if refused is not None:
        return refused
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    if pattern.n not in BLOCKS:
        return f"{SKIPPED}1xN with N 4, 8 or a multiple of 16"
    if problem.scattered is not None:
        return f"{SKIPPED}blocks that lie side by side"
    hidden, block = _spec(problem).hidden, min(pattern.n, LANES)
    if hidden % block:
        return f"{SKIPPED}blocks within one gate, and {hidden} is no multiple of {block}"
    if hidden > MOST_INPUTS:
        return f"{SKIPPED}1xN of at most {MOST_INPUTS} hidden numbers"
    return None


def refuse_nm(problem: Problem) -> str | None:
    """N:M weights in groups that every output starts anew."""
    if problem.detection is not None and isinstance(problem.detection.pattern, Unstructured):
        return f"{SKIPPED}N:M and 1xN, not in {problem.detection.pattern}"
    refused = refuse_pattern(problem, (NM,), "N:M")
    if refused is not None:
        return refused
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, NM)
    picking = Picking(pattern.n, pattern.m)
    if pattern.m not in GROUPS or pattern.n >= pattern.m or not picking.units:
        return f"{SKIPPED}N:M with M 2, 4, 8 or 16, and not nearly all kept"
    if pattern.axis != "ic" and _spec(problem).hidden % pattern.m:
        return f"{SKIPPED}groups that every output starts anew"
    return None


def decline_one_by_n(problem: Problem) -> str | None:
    """Lists that cost more than the zeros that they skip."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    return _slower(problem, LISTED[min(pattern.n, LANES)], problem.detection.density)


def decline_nm(problem: Problem) -> str | None:
    """Picking that costs more than the zeros that it skips."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, NM)
    return _slower(problem, PICKED, pattern.n / pattern.m)


def _slower(problem: Problem, factors: tuple[float, float], density: float) -> str | None:
    factor = factors[_spec(problem).batch > 1]
    if density * factor < 1:
        return None
    assert problem.detection is not None
    return (
        f"all weights are faster: with {problem.detection.pattern} each that is left takes "
        f"{factor:g} times as long, and {density:.0%} are left"
    )


def lower_recurrent(name: str, problem: Problem, config: None) -> Lowered:
    """All weights."""
    spec = _spec(problem)
    sizes = _config(spec, ROWS)
    return _lowered(name, problem, sizes, None, {"values": pack_dense(_weight(problem), sizes)})


def lower_one_by_n(name: str, problem: Problem, config: None) -> Lowered:
    """Lists of inputs, for each gate its own."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    sizes, block = _config(_spec(problem), ROWS), min(pattern.n, LANES)
    values, indices, starts = pack_listed(_weight(problem), block, sizes)
    arrays: dict[str, Array] = {"values": values, "indices": indices, "starts": starts}
    return _lowered(name, problem, sizes, block, arrays)


def lower_nm(name: str, problem: Problem, config: None) -> Lowered:
    """Lanes that pick their inputs."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, NM)
    sizes, picking = _config(_spec(problem), PICKED_ROWS), Picking(pattern.n, pattern.m)
    values, words = pack_picked(_weight(problem), picking, sizes)
    return _lowered(name, problem, sizes, picking, {"values": values, "words": words})


def _config(spec: Recurrent, rows: int) -> LanesConfig:
    """Rows of the batch together, and the vectors of a panel."""
    return LanesConfig(steps_of(spec.batch, rows)[0], vectors_of(spec))


def _weight(problem: Problem) -> npt.NDArray[np.float32]:
    assert problem.weight is not None
    return by_panels(_spec(problem), problem.weight)


def _lowered(
    name: str, problem: Problem, config: LanesConfig, storage: Storage, arrays: dict[str, Array]
) -> Lowered:
    spec, bias = _spec(problem), problem.bias
    if bias is not None:
        arrays = arrays | {"bias": bias_by_blocks(spec, bias)}
    return Lowered(emit_recurrent, (name, spec, bias is not None, config, storage), arrays)
