"""What stands behind the GPU rows of the catalogue: tiles, lowerings and verdicts.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.sparse_tensor_core.channelwise import (
    emit_depthwise,
    emit_global_average,
    emit_pool,
)
from nmcompile.kernels.sparse_tensor_core.conv import emit_conv
from nmcompile.kernels.sparse_tensor_core.gpus import find_gpu
from nmcompile.kernels.sparse_tensor_core.packing import pack_bias, pack_weights
from nmcompile.kernels.sparse_tensor_core.tiles import (
    MAX_ELEMENTS,
    MAX_WINDOW,
    Gemm,
    Method,
    TileConfig,
    padded,
)
from nmcompile.kernels.sparse_tensor_core.tiling import conv_configs
from nmcompile.kernels.spec import Conv2d, GlobalAverage, Linear, Pool2d
from nmcompile.kernels.verdict import MADE_FOR
from nmcompile.sparsity import NM, Dense
from nmcompile.sparsity.tensor_core import GROUP, KEPT, first_broken_group

MIN_CHANNELS = 16  # input channels; below, padding and the window take what sparsity saves

NAMES: dict[Method, str] = {
    "dense": "multiplying densely",
    "sparse": "mma.sp",
    "wgmma": "wgmma.sp",
}


@dataclass(frozen=True)
class TensorCoreConv:
    """One row: a way to multiply on one architecture.

    others: ways that are declined for when the model counts fewer cycles for them.
    """

    arch: str
    method: Method
    others: tuple[Method, ...] = ()

    def as_conv(self, problem: Problem) -> Problem:
        """The convolution that computes a problem; itself, here."""
        return problem

    def refuse(self, problem: Problem) -> str | None:
        """What the kernel cannot run: groups, large windows and, if sparse, weights without 2:4."""
        problem = self.as_conv(problem)
        conv = problem.conv
        if conv.is_depthwise:
            return f"{MADE_FOR}full convolutions, not depthwise ones: one channel fills no tile"
        if conv.groups > 1:
            return f"{MADE_FOR}convolutions without groups, not {conv.groups} of them"
        if max(conv.kernel) > MAX_WINDOW:
            return (
                f"window of {conv.kernel[0]}x{conv.kernel[1]}: the tensor-core kernels take at "
                f"most {MAX_WINDOW} rows and columns"
            )
        too_large = _refuse_elements(conv)
        if too_large is not None or self.method == "dense":
            return too_large
        return _refuse_weight(problem)

    def decline(self, problem: Problem) -> str | None:
        """Where another way is expected to be faster."""
        problem = self.as_conv(problem)
        channels = problem.conv.in_channels
        if "dense" in self.others and channels < MIN_CHANNELS:
            return _few_channels(channels)
        cycles = self.configs(problem)[0].cycles
        for other in self.others:
            found = conv_configs(problem.conv, other, find_gpu(self.arch))[0].cycles
            if found < cycles:
                name = NAMES[other]
                return f"{name} is faster: {found:.3g} cycles counted, against {cycles:.3g}"
        return None

    def configs(self, problem: Problem) -> Sequence[Candidate]:
        """Tiles and splits, the best by the model first."""
        return conv_configs(self.as_conv(problem).conv, self.method, find_gpu(self.arch))

    def lower(self, name: str, problem: Problem, config: TileConfig) -> Lowered:
        """The function and the packed weights."""
        problem = self.as_conv(problem)
        assert problem.weight is not None
        gemm = Gemm(problem.conv, config, self.method)
        arrays: dict[str, Array] = {"weights": pack_weights(problem.weight, gemm)}
        if problem.bias is not None:
            arrays["bias"] = pack_bias(problem.bias, gemm)
        args = (name, problem.conv, problem.epilogue, config, self.method)
        scratch = gemm.scratch_shape if config.splits > 1 else ()
        return Lowered(emit_conv, args, arrays, scratch=scratch)


class TensorCoreLinear(TensorCoreConv):
    """A matrix product as a convolution of images of one pixel: x (rows, 1, 1, in)."""

    def as_conv(self, problem: Problem) -> Problem:
        """See `as_pointwise`."""
        return as_pointwise(problem) if isinstance(problem.spec, Linear) else problem


class GroupedConv(TensorCoreConv):
    """A convolution with groups as one without, whose weights across groups are zero.

    Tensor cores multiply by these zeros about as fast as other units would skip them, as long as
    groups are not many; groups of up to two input channels hold 2:4 whatever their weights.
    """

    def as_conv(self, problem: Problem) -> Problem:
        """See `ungrouped`."""
        return ungrouped(problem) if problem.conv.groups > 1 else problem

    def refuse(self, problem: Problem) -> str | None:
        """What has no groups, and what is too large without them."""
        if problem.conv.groups == 1:
            return f"{MADE_FOR}convolutions with groups"
        return super().refuse(problem)


def as_pointwise(problem: Problem) -> Problem:
    """A matrix product as a convolution of `rows` images of one pixel."""
    linear, weight = problem.spec, problem.weight
    assert isinstance(linear, Linear) and weight is not None
    conv = Conv2d(linear.rows, linear.in_features, 1, 1, linear.out_features, (1, 1))
    return replace(problem, spec=conv, weight=weight[:, :, None, None])


def ungrouped(problem: Problem) -> Problem:
    """The same convolution without groups, its weights block-diagonal."""
    conv, weight = problem.conv, problem.weight
    assert weight is not None
    whole = np.zeros((conv.out_channels, conv.in_channels, *conv.kernel), np.float32)
    for group in range(conv.groups):
        out = slice(group * conv.group_out, (group + 1) * conv.group_out)
        into = slice(group * conv.group_in, (group + 1) * conv.group_in)
        whole[out, into] = weight[out]
    # What one group holds says little of the whole: its zeros count, whatever the pattern.
    return replace(problem, spec=replace(conv, groups=1), weight=whole, detection=None)


def refuse_depthwise(problem: Problem) -> str | None:
    """What reads several channels, or makes several of one."""
    if problem.conv.is_depthwise and problem.conv.group_out == 1:
        return _refuse_elements(problem.conv)
    return f"{MADE_FOR}depthwise convolutions"


def lower_depthwise(name: str, problem: Problem, config: None) -> Lowered:
    """One thread for eight channels of one pixel."""
    conv = problem.conv
    assert problem.weight is not None
    # (channel, 1, row, column) to (tap, channel).
    taps = problem.weight.reshape(conv.out_channels, conv.taps).T
    arrays: dict[str, Array] = {"weights": _pad_channels(taps)}
    if problem.bias is not None:
        arrays["bias"] = _pad_channels(problem.bias)
    return Lowered(emit_depthwise, (name, conv, problem.epilogue), arrays)


def lower_pool(name: str, problem: Problem, config: None) -> Lowered:
    """One thread for eight channels of one pixel."""
    assert isinstance(problem.spec, Pool2d)
    return Lowered(emit_pool, (name, problem.spec), {})


def lower_global_average(name: str, problem: Problem, config: None) -> Lowered:
    """One thread for eight channels of one image."""
    assert isinstance(problem.spec, GlobalAverage)
    # Where the model has them makes no difference: (N, C) and (N, C, 1, 1) lie alike.
    spec = replace(problem.spec, out_shape=(problem.spec.batch, problem.spec.channels, 1, 1))
    return Lowered(emit_global_average, (name, spec), {})


def _pad_channels(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Zeros behind the last axis, up to whole vectors."""
    channels = array.shape[-1]
    width = [(0, 0)] * (array.ndim - 1) + [(0, padded(channels) - channels)]
    return np.ascontiguousarray(np.pad(array, width), np.float32)


def _refuse_elements(conv: Conv2d) -> str | None:
    """Activations beyond 31-bit addresses."""
    elements = conv.batch * max(
        conv.in_height * conv.in_width * padded(conv.in_channels),
        conv.out_pixels * padded(conv.out_channels),
    )
    if elements <= MAX_ELEMENTS:
        return None
    return f"an activation of {elements} elements: addresses have 31 bits; reduce the batch"


def _few_channels(channels: int) -> str:
    return (
        f"{channels} input channels: under {MIN_CHANNELS} loading the window takes as long as "
        "multiplying densely"
    )


def _refuse_weight(problem: Problem) -> str | None:
    """Weights of which four neighbouring input channels hold more than two non-zeros."""
    assert problem.weight is not None
    found = first_broken_group(problem.weight)
    asked_dense = problem.detection is not None and isinstance(problem.detection.pattern, Dense)
    if found is None:
        return "compiled as dense, with the zeros that it has" if asked_dense else None
    pattern = Dense() if problem.detection is None else problem.detection.pattern
    if problem.conv.in_channels < MIN_CHANNELS:
        return _few_channels(problem.conv.in_channels)
    if isinstance(pattern, Dense):
        return "the weight is dense; `nmc enforce` with 2:4 would make it sparse"
    out, channel, row, column = found
    where = (
        f"output channel {out}, input channels {channel} to {channel + GROUP - 1}, kernel position "
        f"({row}, {column})"
    )
    hint = ""
    if isinstance(pattern, NM) and pattern.axis != "ic":
        hint = ": its groups do not run along the input channels"
    return (
        f"{pattern} is not 2:4 along the input channels{hint} (over {KEPT} non-zeros in {where}); "
        "`nmc enforce` with 2:4 would make it so"
    )
