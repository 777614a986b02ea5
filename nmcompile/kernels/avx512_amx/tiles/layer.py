"""A layer as tiles see it: bytes of activations and weights, whatever numbers they are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512_amx.bfloat16.layout import padded, rounded
from nmcompile.kernels.avx512_amx.tiles.config import padded_outputs
from nmcompile.kernels.avx512_amx.tiles.numbers import Brain, Bytes, Numbers
from nmcompile.kernels.avx512_vnni.lanes.packing import kept_channels, positions_of
from nmcompile.kernels.avx512_vnni.lanes.rows import conv_of, oihw
from nmcompile.kernels.integers import whole_offset
from nmcompile.kernels.problem import Array, Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.sparsity import OneByN


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution without groups, or matrix product.

    conv: whose input channels are bytes.
    strided: a 1x1 convolution with a stride, of whose pixels `conv` is one without.
    positions: the weight's bytes, (out, kh * kw, bytes).
    kept: which bytes each list of `list_outputs` outputs reads, (lists, bytes); None without lists.
    numbers: what the bytes are.
    residual: whether one is added to the sums.
    arrays: the constants behind the weights.
    shapes: of input and output.
    """

    conv: Conv2d
    strided: Conv2d | None
    positions: npt.NDArray[np.int8]
    kept: npt.NDArray[np.bool_] | None
    list_outputs: int
    numbers: Numbers
    residual: bool
    arrays: Mapping[str, Array]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@functools.lru_cache(maxsize=4)
def layer_of(problem: Problem) -> Layer:
    """The layer of a problem of int8 or bfloat16."""
    return _of_integers(problem) if problem.integers is not None else _of_floats(problem)


def _list_outputs(problem: Problem) -> int:
    pattern = None if problem.detection is None else problem.detection.pattern
    return pattern.n if isinstance(pattern, OneByN) else 0


def _of_integers(problem: Problem) -> Layer:
    integers, conv, weight = problem.integers, conv_of(problem), oihw(problem)
    assert integers is not None
    outputs = padded_outputs(conv.out_channels)
    offset, scale = np.zeros(outputs, np.int32), np.zeros(outputs, np.float32)
    offset[: conv.out_channels] = whole_offset(weight, integers)
    scale[: conv.out_channels] = integers.scale
    positions = positions_of(weight, conv)
    each = _list_outputs(problem)
    kept = kept_channels(positions, each) if each else None
    numbers = Bytes(integers.epilogue, integers.x_zero if any(conv.padding) else 0)
    arrays = {"offset": offset, "scale": scale, "steps": integers.steps}
    residual = integers.residual is not None
    shapes = problem.bytes_shapes
    shapes = problem.bytes_shapes
    return Layer(*_unstrided(conv), positions, kept, each, numbers, residual, arrays, shapes)


def _of_floats(problem: Problem) -> Layer:
    spec, weight, epilogue = problem.spec, problem.weight, problem.epilogue
    assert weight is not None
    if isinstance(spec, Linear):  # its rows are images of one pixel
        conv = Conv2d(spec.rows, spec.in_features, 1, 1, spec.out_features, (1, 1))
        weight = weight.reshape(*weight.shape, 1, 1)
    else:
        conv = problem.conv
    rows = positions_of(weight, conv)
    inputs, outputs = padded(conv.in_channels), padded(conv.out_channels)
    numbers = np.zeros((outputs, conv.taps, inputs), np.float32)
    numbers[: conv.out_channels, :, : conv.in_channels] = rows
    positions = rounded(numbers).view(np.int8).reshape(outputs, conv.taps, -1)
    each = _list_outputs(problem)
    kept = None
    if each:
        lists = np.zeros((-(-outputs // each) * each, inputs), bool)
        lists[:outputs] = (numbers != 0).any(axis=1)
        kept = np.repeat(lists.reshape(-1, each, inputs).any(axis=1), 2, axis=1)
    bias = np.zeros(padded_outputs(outputs), np.float32)
    if problem.bias is not None:
        bias[: conv.out_channels] = problem.bias
    shapes = (
        (conv.batch, conv.in_height, conv.in_width, inputs),
        (conv.batch, conv.out_height, conv.out_width, outputs),
    )
    # Groups are zeros of the weight.
    bytes_of = replace(conv, in_channels=2 * inputs, out_channels=outputs, groups=1)
    whole = Brain(replace(epilogue, bias=False))
    added, arrays = epilogue.residual, {"bias": bias}
    return Layer(*_unstrided(bytes_of), positions, kept, each, whole, added, arrays, shapes)


def _unstrided(conv: Conv2d) -> tuple[Conv2d, Conv2d | None]:
    """The convolution that tiles compute, and the one whose pixels are brought together for it.

    Tiles of pixels that follow each other, whatever the row, are full ones.
    """
    if conv.kernel != (1, 1) or conv.stride == (1, 1) or any(conv.padding):
        return conv, None
    return replace(conv, in_height=conv.out_height, in_width=conv.out_width, stride=(1, 1)), conv
