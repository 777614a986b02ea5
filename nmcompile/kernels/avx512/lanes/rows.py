"""Products with outputs in lanes as rows of the catalogue."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.lanes.linear import emit_linear, pack_linear
from nmcompile.kernels.avx512.lanes.tiling import dense_configs_of
from nmcompile.kernels.problem import Candidate, Lowered, Problem, with_bias
from nmcompile.kernels.spec import Linear


def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All weights."""
    assert isinstance(problem.spec, Linear)
    return dense_configs_of(problem.spec)


def packing_of(config: LanesConfig) -> Hashable:
    """What of the tile sizes says how weights are packed."""
    return config.vectors


def lower_dense(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Dense matrix product."""
    linear = problem.spec
    assert config is not None and isinstance(linear, Linear) and problem.weight is not None
    bias = problem.bias
    if bias is not None:
        bias = np.pad(bias, (0, -len(bias) % config.width))
    args = (name, linear, problem.epilogue, config)
    return Lowered(emit_linear, args, with_bias(pack_linear(problem.weight, config), bias))
