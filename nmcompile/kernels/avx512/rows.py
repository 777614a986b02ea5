"""What stands behind the AVX-512 rows of the catalogue: refusals and lowerings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.linear import PANEL, emit_linear, pack_linear
from nmcompile.kernels.avx512.packing import pack_conv
from nmcompile.kernels.avx512.panel import emit_panel_conv
from nmcompile.kernels.avx512.panel_config import PanelConfig, lists_of
from nmcompile.kernels.avx512.tiling import dense_outputs, own_configs, shared_configs
from nmcompile.kernels.avx512.window import (
    average_scale,
    emit_depthwise,
    emit_global_average,
    emit_pool,
)
from nmcompile.kernels.problem import MADE_FOR, Array, Lowered, Problem
from nmcompile.kernels.spec import GlobalAverage, Linear, Pool2d
from nmcompile.sparsity import NM, Dense, OneByN, Pattern, Unstructured

# Densities above which the dense kernel is faster. N:M is bound by L1 loads, whose rate depends on
# the machine and its neighbours: where they are fast, ResNet-50 breaks even at 0.68
# (benchmarks/results), where they are slow, lower.
ONE_BY_N_BREAK_EVEN = 0.92
NM_BREAK_EVEN = 0.62
MAX_DEPTHWISE_TAPS = 81
MIN_GROUP_OUTPUTS = 8  # below, packing the panel costs more than multiplying it


def accept(problem: Problem) -> str | None:
    """Take every problem of the operator."""
    return None


def refuse_depthwise(problem: Problem) -> str | None:
    """Only convolutions with one input channel per group."""
    conv = problem.conv
    if conv.is_depthwise and conv.taps <= MAX_DEPTHWISE_TAPS:
        return None
    if conv.is_depthwise:
        return f"{conv.taps} taps: the depthwise kernel writes out at most {MAX_DEPTHWISE_TAPS}"
    return f"{MADE_FOR}depthwise convolutions, not {problem.conv.group_in} input channels per group"


def _refuse_sparse(
    problem: Problem, kinds: tuple[type[Pattern], ...], names: str, break_even: float
) -> str | None:
    """What a kernel for patterns of some `kinds` declines."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    if isinstance(pattern, Dense):
        return f"the weight is dense (density {density:.2f})"
    if not isinstance(pattern, kinds):
        return f"{MADE_FOR}{names}, not {pattern}"
    if problem.conv.group_out < MIN_GROUP_OUTPUTS:
        return (
            f"{problem.conv.group_out} output channels per group: under {MIN_GROUP_OUTPUTS} the "
            "dense kernel is faster"
        )
    if density > break_even:
        return f"density {density:.2f} is above the {names} break-even of {break_even}"
    return None


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks, below break-even."""
    return _refuse_sparse(problem, (OneByN,), "1xN", ONE_BY_N_BREAK_EVEN)


def refuse_nm(problem: Problem) -> str | None:
    """N:M and unstructured weights, below break-even."""
    return _refuse_sparse(problem, (NM, Unstructured), "N:M or unstructured", NM_BREAK_EVEN)


def lower_panel(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Panel convolution with tiles from the `..._configs` function of its row."""
    assert config is not None
    conv = problem.conv
    assert problem.weight is not None
    packed = pack_conv(problem.weight, conv, config)
    arrays = dict(packed.arrays)
    if problem.bias is not None:
        padded = np.zeros((conv.groups, lists_of(conv, config) * config.lane_outputs), np.float32)
        padded[:, : conv.group_out] = problem.bias.reshape(conv.groups, -1)
        arrays["bias"] = padded.reshape(-1)
    args = (name, conv, problem.epilogue, config, packed.sizes)
    return Lowered(emit_panel_conv, args, arrays)


def one_by_n_configs(problem: Problem) -> Sequence[PanelConfig]:
    """Lists shared by the N output channels of a block."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    density = problem.detection.density
    return shared_configs(problem.conv, pattern.n, density, False)


def nm_configs(problem: Problem) -> Sequence[PanelConfig]:
    """One list per output channel; of fixed length where the groups fit the input channels."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    return own_configs(problem.conv, pattern, density)


def dense_configs(problem: Problem) -> Sequence[PanelConfig]:
    """All rows, no lists."""
    return shared_configs(problem.conv, dense_outputs(problem.conv), 1.0, True)


def one_config(problem: Problem) -> Sequence[PanelConfig]:
    """Nothing to choose: kernels without tiles."""
    return ()


def _arguments(values: Array, bias: npt.NDArray[np.float32] | None) -> dict[str, Array]:
    return {"values": values} if bias is None else {"values": values, "bias": bias}


def lower_depthwise(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Window kernel, one channel at a time."""
    assert problem.weight is not None
    values = np.ascontiguousarray(problem.weight).reshape(-1)
    args = (name, problem.conv, problem.epilogue)
    return Lowered(emit_depthwise, args, _arguments(values, problem.bias))


def lower_linear(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Dense matrix product."""
    linear = problem.spec
    assert isinstance(linear, Linear) and problem.weight is not None
    width = PANEL * LANES
    bias = problem.bias
    if bias is not None:
        bias = np.pad(bias, (0, -len(bias) % width))
    args = (name, linear, problem.epilogue)
    return Lowered(emit_linear, args, _arguments(pack_linear(problem.weight), bias))


def lower_pool(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Max and average pooling."""
    pool = problem.spec
    assert isinstance(pool, Pool2d)
    scale = {"scale": average_scale(pool).reshape(-1)} if pool.kind == "average" else {}
    return Lowered(emit_pool, (name, pool), scale)


def lower_global_average(name: str, problem: Problem, config: PanelConfig | None) -> Lowered:
    """Mean over all pixels."""
    pool = problem.spec
    assert isinstance(pool, GlobalAverage)
    return Lowered(emit_global_average, (name, pool), {})
