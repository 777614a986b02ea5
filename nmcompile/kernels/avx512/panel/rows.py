"""What stands behind the panel rows of the catalogue: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nmcompile.kernels.avx512.panel.config import PanelConfig, lists_of
from nmcompile.kernels.avx512.panel.conv import emit_panel_conv
from nmcompile.kernels.avx512.panel.linear import conv_of, emit_panel_linear
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
    if problem.scattered is not None and problem.conv.groups > 1:
        return "the filters of its blocks are scattered over several groups"
    return refuse_pattern(problem, (OneByN,), "1xN")


def refuse_nm(problem: Problem) -> str | None:
    """N:M and unstructured weights."""
    return refuse_pattern(problem, (NM, Unstructured), "N:M or unstructured")


def one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """Lists shared by the N output channels of a block."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    density = problem.detection.density
    return shared_configs(problem.conv, pattern.n, density, False)


def nm_configs(problem: Problem) -> Sequence[Candidate]:
    """One list per output channel; of fixed length where the groups fit the input channels."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    return own_configs(problem.conv, pattern, density)


def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All rows, no lists."""
    return shared_configs(problem.conv, dense_outputs(problem.conv), 1.0, True)


def panel_packed_as(problem: Problem, config: PanelConfig) -> Sequence[Candidate]:
    """Tile sizes for weights that are packed as for others of the same row."""
    product = isinstance(problem.spec, Linear)
    conv = conv_of(problem.spec) if isinstance(problem.spec, Linear) else problem.conv
    if config.lists == "dense":
        return shared_packed_as(conv, config, 1.0, product)
    assert problem.detection is not None
    alike = own_packed_as if config.own_lists else shared_packed_as
    found = alike(conv, config, problem.detection.density, product)
    if product and problem.scattered is not None:
        return [candidate for candidate in found if candidate.config.chunks == 1]
    return found


def lower_panel(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Panel convolution with tiles from the `..._configs` function of its row."""
    assert config is not None
    conv = problem.conv
    assert problem.weight is not None
    scattered = problem.scattered if config.lists == "shared" else None
    packed = pack_conv(problem.weight, conv, config, scattered)
    arrays = dict(packed.arrays)
    if problem.bias is not None:
        padded = np.zeros((conv.groups, lists_of(conv, config) * config.lane_outputs), np.float32)
        padded[:, : conv.group_out] = problem.bias.reshape(conv.groups, -1)
        bias = padded.reshape(-1)
        arrays["bias"] = bias if scattered is None or packed.order is None else bias[packed.order]
    args = (name, conv, problem.epilogue, config, packed.sizes)
    return Lowered(emit_panel_conv, args, arrays)


def refuse_linear_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks."""
    return refuse_pattern(problem, (OneByN,), "1xN")


def linear_one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """As `one_by_n_configs`; scattered outputs stay in one part."""
    assert problem.detection is not None and isinstance(problem.spec, Linear)
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    found = shared_configs(
        conv_of(problem.spec), pattern.n, problem.detection.density, False, product=True
    )
    if problem.scattered is None:
        return found
    return [candidate for candidate in found if candidate.config.chunks == 1]


def linear_nm_configs(problem: Problem) -> Sequence[Candidate]:
    """As `nm_configs`."""
    assert problem.detection is not None and isinstance(problem.spec, Linear)
    pattern, density = problem.detection.pattern, problem.detection.density
    return own_configs(conv_of(problem.spec), pattern, density, product=True)


def lower_panel_linear(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Panel matrix product with tiles from the `..._configs` function of its row."""
    linear, weight = problem.spec, problem.weight
    assert config is not None and isinstance(linear, Linear) and weight is not None
    conv = conv_of(linear)
    scattered = problem.scattered if config.lists == "shared" else None
    # Whole lines of outputs are written at once, so those of a part stay together.
    packed = pack_conv(weight.reshape(*weight.shape, 1, 1), conv, config, scattered, deals=False)
    arrays = dict(packed.arrays)
    if problem.bias is not None:
        padded = np.zeros(lists_of(conv, config) * config.lane_outputs, np.float32)
        padded[: linear.out_features] = problem.bias
        arrays["bias"] = (
            padded if packed.order is None or scattered is None else padded[packed.order]
        )
    args = (name, linear, problem.epilogue, config, packed.sizes)
    return Lowered(emit_panel_linear, args, arrays)
