"""What stands behind the panel rows of the catalogue: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nmcompile.kernels.avx512.panel.config import PanelConfig, lists_of
from nmcompile.kernels.avx512.panel.conv import emit_panel_conv
from nmcompile.kernels.avx512.panel.linear import emit_panel_linear
from nmcompile.kernels.avx512.panel.packing import pack_conv
from nmcompile.kernels.avx512.panel.tiling import (
    dense_outputs,
    own_configs,
    own_packed_as,
    shared_configs,
    shared_packed_as,
)
from nmcompile.kernels.problem import Candidate, Lowered, Problem
from nmcompile.kernels.spec import Linear
from nmcompile.kernels.verdict import refuse_pattern
from nmcompile.sparsity import NM, OneByN, Unstructured


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks."""
    if problem.scattered is not None and problem.as_conv.groups > 1:
        return "the filters of its blocks are scattered over several groups"
    return refuse_pattern(problem, (OneByN,), "1xN")


def refuse_nm(problem: Problem) -> str | None:
    """N:M and unstructured weights."""
    return refuse_pattern(problem, (NM, Unstructured), "N:M or unstructured")


def one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """Lists shared by the N output channels of a block."""
    assert problem.detection is not None
    pattern, product = problem.detection.pattern, isinstance(problem.spec, Linear)
    assert isinstance(pattern, OneByN)
    # Whole lines of outputs are written at once, which scattered ones of a part do not fill.
    whole = product and problem.scattered is not None
    density = problem.detection.density
    return shared_configs(problem.as_conv, pattern.n, density, False, product, whole)


def nm_configs(problem: Problem) -> Sequence[Candidate]:
    """One list per output channel; of fixed length where the groups fit the input channels."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    return own_configs(problem.as_conv, pattern, density, isinstance(problem.spec, Linear))


def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All rows, no lists."""
    return shared_configs(problem.conv, dense_outputs(problem.conv), 1.0, True)


def panel_packed_as(problem: Problem, config: PanelConfig) -> Sequence[Candidate]:
    """Tile sizes for weights that are packed as for others of the same row."""
    conv, product = problem.as_conv, isinstance(problem.spec, Linear)
    if config.lists == "dense":
        return shared_packed_as(conv, config, 1.0, product)
    assert problem.detection is not None
    alike = own_packed_as if config.own_lists else shared_packed_as
    return alike(conv, config, problem.detection.density, product)


def lower_panel(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Convolution or matrix product with tiles from the `..._configs` function of its row."""
    assert config is not None
    conv, product = problem.as_conv, isinstance(problem.spec, Linear)
    scattered = problem.scattered if config.lists == "shared" else None
    # Outputs of a part of a product stay together: they are written side by side.
    packed = pack_conv(problem.oihw, conv, config, scattered, deals=not product)
    arrays = dict(packed.arrays)
    if problem.bias is not None:
        padded = np.zeros((conv.groups, lists_of(conv, config) * config.lane_outputs), np.float32)
        padded[:, : conv.group_out] = problem.bias.reshape(conv.groups, -1)
        bias = padded.reshape(-1)
        arrays["bias"] = bias if scattered is None or packed.order is None else bias[packed.order]
    args = (name, problem.spec, problem.epilogue, config, packed.sizes)
    return Lowered(emit_panel_linear if product else emit_panel_conv, args, arrays)
