"""What stands behind the AVX-512 rows of the catalogue: tile sizes and lowerings."""

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
from nmcompile.kernels.avx512.winograd import emit_winograd
from nmcompile.kernels.avx512.winograd_config import Tiling, WinogradConfig
from nmcompile.kernels.avx512.winograd_prepare import keep_windows
from nmcompile.kernels.avx512.winograd_tiling import DENSE_LIST, winograd_configs
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import GlobalAverage, Linear, Pool2d
from nmcompile.sparsity import OneByN


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


def winograd_one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """Lists of whole windows, shared by the N output channels of a block."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    return winograd_configs(problem.conv, pattern.n, problem.detection.density, False)


def winograd_dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All windows, no lists."""
    return winograd_configs(problem.conv, DENSE_LIST, 1.0, True)


def lower_winograd(name: str, problem: Problem, config: WinogradConfig) -> Lowered:
    """Winograd convolution whose weights are transformed when an artifact is loaded."""
    assert problem.weight is not None
    tiling = Tiling(problem.conv, config)
    arrays, prepare, sizes = keep_windows(f"{name}_prepare", problem.weight, tiling)
    if problem.bias is not None:
        arrays["bias"] = problem.bias
    args = (name, problem.epilogue, tiling, sizes)
    return Lowered(emit_winograd, args, arrays, {"values": prepare})


def one_config(problem: Problem) -> Sequence[Candidate]:
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
