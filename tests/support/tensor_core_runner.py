"""Lowers one tensor-core row and runs the CUDA that TVM writes for it in the emulator."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from nmcompile.kernels.catalog import CATALOG, Kernel
from nmcompile.kernels.cuda.build import CudaSource, cuda_source
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.sparse_tensor_core.gpus import find_gpu
from nmcompile.kernels.sparse_tensor_core.tiles import Method, TileConfig, padded, tiles_of
from nmcompile.kernels.spec import Conv2d, Epilogue
from nmcompile.sparsity import NM, Dense, Detection, project
from tests.support.cuda_emulator.run import run_emulated
from tests.support.kernel_runner import output_shape

Array = npt.NDArray[Any]

FULL = ("conv2d_f16_two_four", "conv2d_f16_dense")  # convolutions without groups
ROWS = [row for row in CATALOG if row.name.startswith(FULL)]


def method_of(kernel: Kernel) -> Method:
    if "wgmma" in kernel.name:
        return "wgmma"
    return "sparse" if kernel.sparse else "dense"


def tiles_of_row(kernel: Kernel) -> tuple[TileConfig, ...]:
    return tiles_of(method_of(kernel), find_gpu(kernel.target))


VARIANTS = [(row, tile) for row in ROWS for tile in tiles_of_row(row)]


def usual_variants(part: Callable[[TileConfig], object] = lambda tile: tile) -> list[Any]:
    """Every tile of every row; what is the same code on another architecture is long.

    But for the first tile of each row, so that every row runs. Tiles of the same `part` are taken
    for the same code.
    """
    found, seen = [], set[tuple[str, object]]()
    for row, tile in VARIANTS:
        code = (row.name.partition("__")[0], part(tile))
        again = code in seen and tile != tiles_of_row(row)[0]
        found.append(pytest.param(row, tile, marks=pytest.mark.long if again else []))
        seen.add(code)
    return found


def variant_name(value: Kernel | TileConfig) -> str:
    if isinstance(value, Kernel):
        return value.name
    return f"{value.channels}x{value.pixels}_{value.warps[0]}x{value.warps[1]}"


def make_problem(
    kernel: Kernel, conv: Conv2d, epilogue: Epilogue, seed: int, whole: bool
) -> tuple[Problem, Array, Array | None]:
    """A problem that a row takes, its input and residual (NCHW), all exact in float16.

    `whole` numbers are so small that sums have no rounding error.
    """
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], limit: int) -> npt.NDArray[np.float32]:
        if whole:
            return rng.integers(-limit, limit + 1, shape).astype(np.float32)
        return rng.standard_normal(shape).astype(np.float16).astype(np.float32)

    pattern = [NM(2, 4), NM(1, 4), NM(2, 8), NM(1, 16)][seed % 4] if kernel.sparse else Dense()
    weight = draw((conv.out_channels, conv.in_channels, *conv.kernel), 3)
    if isinstance(pattern, NM):
        # The groups of the kernel start anew at every kernel position.
        for position in np.ndindex(*conv.kernel):
            at = (slice(None), slice(None), *position)
            weight[at] = project(weight[at], pattern)
    bias = draw((conv.out_channels,), 8) if epilogue.bias else None
    detection = Detection(pattern, (pattern,), 0.5)
    problem = Problem(conv, epilogue, weight, bias, detection, "float16")
    x = draw((conv.batch, conv.in_channels, conv.in_height, conv.in_width), 2)
    residual = draw(output_shape(problem), 4) if epilogue.residual else None
    return problem, x, residual


def source_of(kernel: Kernel, lowered: Lowered) -> CudaSource:
    return cuda_source(lowered.emit_func(), kernel.target)


def in_memory(array: Array, fill: float = 0.0) -> npt.NDArray[np.float16]:
    """NCHW to NHWC float16 with channels padded to a multiple of 8."""
    n, c, h, w = array.shape
    out = np.full((n, h, w, padded(c)), fill, np.float16)
    out[..., :c] = array.transpose(0, 2, 3, 1)
    return out


def run_row(
    kernel: Kernel,
    problem: Problem,
    x: Array,
    residual: Array | None,
    config: TileConfig | None = None,
    source: CudaSource | None = None,
    launch: Callable[[CudaSource, Mapping[str, Array]], None] = run_emulated,
) -> npt.NDArray[np.float64]:
    """The output, NCHW. What nobody should read or leave is NaN or 1e4, not zero.

    `launch` runs the source over buffers, by default in the emulator.
    """
    lowered = kernel.lower(problem, config)
    out = np.full(output_shape(problem), np.nan, np.float32)
    buffers: dict[str, Array] = {**lowered.arrays, "x": in_memory(x, fill=1e4)}
    if residual is not None:
        buffers["residual"] = in_memory(residual)
    if not problem.epilogue.in_place:
        buffers["out"] = in_memory(out, fill=np.nan)
    if lowered.scratch:
        buffers["scratch"] = np.full(lowered.scratch, np.nan, np.float32)
    launch(source or source_of(kernel, lowered), buffers)
    written = buffers["residual" if problem.epilogue.in_place else "out"]
    assert np.isfinite(written[..., output_shape(problem)[1] :]).all(), (
        "the padded channels, too, are finite"
    )
    channels = problem.conv.out_channels
    result: npt.NDArray[np.float64] = written[..., :channels].transpose(0, 3, 1, 2).astype(float)
    return result


@st.composite
def geometries(draw: st.DrawFn) -> Conv2d:
    """Tails of pixels and channels, strides, asymmetric padding, dilation; at most a few tiles."""
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (1, 5), (2, 3), (7, 7), (16, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)]))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    conv = Conv2d(
        batch=draw(st.sampled_from([1, 1, 3])),
        in_channels=draw(st.sampled_from([1, 3, 8, 17, 24, 40, 64, 72, 128])),
        in_height=draw(st.integers(1, 14)),
        in_width=draw(st.integers(1, 14)),
        out_channels=draw(st.sampled_from([1, 8, 31, 40, 64, 100, 136])),
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 4)])),
        padding=(padding[0], padding[1], padding[2], padding[3]),
        dilation=dilation,
    )
    missing = max(0, 1 - conv.out_height), max(0, 1 - conv.out_width)
    grown = conv.in_height + 40 * (missing[0] > 0), conv.in_width + 40 * (missing[1] > 0)
    return replace(conv, in_height=grown[0], in_width=grown[1])
