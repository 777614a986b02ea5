"""What stands behind the catalogue's rows of bfloat16 on vectors.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_bf16.average import emit_global_average
from nmcompile.kernels.avx512_bf16.layer import brain_layer
from nmcompile.kernels.avx512_bf16.layout import padded
from nmcompile.kernels.avx512_bf16.window import emit_depthwise, emit_pool
from nmcompile.kernels.avx512_vnni.lanes.costs import Costs
from nmcompile.kernels.avx512_vnni.lanes.rows import LanesRows
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import GlobalAverage, Pool2d
from nmcompile.kernels.verdict import MADE_FOR

COSTS = Costs(
    pick=0.48,
    latency=11.7,
    load=1.15,
    load_l2=1.0,
    memory=10.0,
    again=0.31,
    far=1.0,
    output=2.0,
    crowded=1.5,
    tile=13.0,
    item=77.0,
    block=1.7,
    segment=11.0,
    vector=3.8,
    source=2.1,
    store=3.5,
    store_beyond=6.6,
    gather_row=22.0,
)
"""Fitted as those of bytes are."""
LANES_ROWS = LanesRows(brain_layer, COSTS)
"""Convolutions and matrix products, by `vdpbf16ps`."""


def refuse_depthwise(problem: Problem) -> str | None:
    """What reads several channels, or makes several of one."""
    if problem.conv.is_depthwise and problem.conv.group_out == 1:
        return None
    return f"{MADE_FOR}depthwise convolutions"


def lower_depthwise(name: str, problem: Problem, config: None) -> Lowered:
    """All outputs of 32 channels of one pixel at a time."""
    conv, weight = problem.conv, problem.weight
    assert weight is not None
    taps = _whole(weight.reshape(conv.out_channels, conv.taps).T)
    bias = np.zeros(conv.out_channels, np.float32) if problem.bias is None else problem.bias
    arrays = {"weights": taps, "bias": _whole(bias)}
    epilogue = replace(problem.epilogue, bias=False)
    return Lowered(emit_depthwise, (name, conv, epilogue), arrays)


def lower_pool(name: str, problem: Problem, config: None) -> Lowered:
    """32 channels of one pixel at a time."""
    assert isinstance(problem.spec, Pool2d)
    return Lowered(emit_pool, (name, problem.spec), {})


def lower_global_average(name: str, problem: Problem, config: None) -> Lowered:
    """16 channels of one image at a time."""
    assert isinstance(problem.spec, GlobalAverage)
    # Where the model has them makes no difference: (N, C) and (N, C, 1, 1) lie alike.
    spec = replace(problem.spec, out_shape=(problem.spec.batch, problem.spec.channels, 1, 1))
    return Lowered(emit_global_average, (name, spec), {})


def _whole(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Zeros behind the last axis, up to whole vectors."""
    channels = array.shape[-1]
    missing = -(-padded(channels) // LANES) * LANES - channels
    width = [(0, 0)] * (array.ndim - 1) + [(0, missing)]
    return np.ascontiguousarray(np.pad(array, width), np.float32)
