"""Products with outputs in lanes as rows of the catalogue: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from nmcompile.kernels.avx512.lanes.config import LanesConfig, Picking
from nmcompile.kernels.avx512.lanes.dense import emit_dense, pack_dense
from nmcompile.kernels.avx512.lanes.listed import emit_listed, pack_listed
from nmcompile.kernels.avx512.lanes.picked import emit_picked, pack_picked
from nmcompile.kernels.avx512.lanes.tiling import (
    dense_configs_of,
    listed_configs_of,
    picked_configs_of,
)
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import Linear
from nmcompile.kernels.verdict import MADE_FOR, refuse_pattern
from nmcompile.sparsity import NM, OneByN

BLOCKS = (4, 8, 16, 32, 48, 64)  # outputs that share a list: vectors of 16, or even parts of one
GROUPS = (2, 4, 8, 16)  # inputs of a group: even parts of 16
MOST_INPUTS = 1 << 16  # that 16 bits number


def _linear(problem: Problem) -> Linear:
    assert isinstance(problem.spec, Linear)
    return problem.spec


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks that lie side by side."""
    refused = refuse_pattern(problem, (OneByN,), "1xN")
    if refused is not None:
        return refused
    if _block(problem) not in BLOCKS:
        return f"{MADE_FOR}1xN with N 4, 8 or a multiple of 16"
    if problem.scattered is not None:
        return f"{MADE_FOR}blocks of filters that lie side by side"
    if _linear(problem).in_features > MOST_INPUTS:
        return f"{MADE_FOR}at most {MOST_INPUTS} inputs"
    return None


def refuse_nm(problem: Problem) -> str | None:
    """N:M weights in groups that every output starts anew."""
    refused = refuse_pattern(problem, (NM,), "N:M")
    if refused is not None:
        return refused
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, NM)
    if pattern.m not in GROUPS or pattern.n >= pattern.m or not _picking(problem).units:
        return f"{MADE_FOR}N:M with M up to 16, and not nearly all kept"
    if pattern.axis != "ic" and _linear(problem).in_features % pattern.m:
        return f"{MADE_FOR}groups that every output starts anew"
    return None


def _block(problem: Problem) -> int:
    """Outputs that share a list."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    return pattern.n


def _picking(problem: Problem) -> Picking:
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, NM)
    return Picking(pattern.n, pattern.m)


def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All weights."""
    return dense_configs_of(_linear(problem))


def one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """Lists of inputs."""
    assert problem.detection is not None
    return listed_configs_of(_linear(problem), _block(problem), problem.detection.density)


def nm_configs(problem: Problem) -> Sequence[Candidate]:
    """Lanes that pick their inputs."""
    return picked_configs_of(_linear(problem), _picking(problem))


def packing_of(config: LanesConfig) -> Hashable:
    """What of the tile sizes says how weights are packed."""
    return config.vectors


def lower_dense(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Matrix product with all weights."""
    assert config is not None and problem.weight is not None
    args = (name, _linear(problem), problem.epilogue, config)
    arrays: dict[str, Array] = {"values": pack_dense(problem.weight, config)}
    return Lowered(emit_dense, args, arrays | _bias(problem, config))


def lower_one_by_n(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Matrix product with lists of inputs."""
    assert config is not None and problem.weight is not None
    outputs = _block(problem)
    values, indices, starts = pack_listed(problem.weight, outputs, config)
    args = (name, _linear(problem), problem.epilogue, config, outputs)
    arrays: dict[str, Array] = {"values": values, "indices": indices, "starts": starts}
    return Lowered(emit_listed, args, arrays | _bias(problem, config))


def lower_nm(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Matrix product with lanes that pick their inputs."""
    assert config is not None and problem.weight is not None
    picking = _picking(problem)
    values, words = pack_picked(problem.weight, picking, config)
    args = (name, _linear(problem), problem.epilogue, config, picking)
    arrays: dict[str, Array] = {"values": values, "words": words}
    return Lowered(emit_picked, args, arrays | _bias(problem, config))


def _bias(problem: Problem, config: LanesConfig) -> dict[str, Array]:
    """The bias, if there is one, padded to whole panels."""
    bias = problem.bias
    return {} if bias is None else {"bias": np.pad(bias, (0, -len(bias) % config.width))}
