"""A layer as lanes and tiles see it: bytes of activations and of weights, whatever they are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512_vnni.lanes.config import padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.lists import kept_channels
from nmcompile.kernels.avx512_vnni.lanes.numbers import Bytes, Numbers
from nmcompile.kernels.avx512_vnni.lanes.packing import positions_of
from nmcompile.kernels.avx512_vnni.lanes.reading import unstrided
from nmcompile.kernels.integers import whole_offset
from nmcompile.kernels.problem import Array, Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import OneByN

SHORT = 12  # output pixels


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution or matrix product.

    conv: whose input channels are bytes.
    strided: a 1x1 convolution with a stride, of whose pixels `conv` is one without; None where
        `conv` reads the input as it lies.
    positions: the weight's bytes, (out, kh * kw, bytes), zeros for the channels of other groups.
    used: which of them belong to weights that are not zero.
    list_outputs: output channels that share a list of what they read; 0 where none do.
    numbers: what the bytes are.
    residual: whether one is added to the sums.
    arrays: the constants behind the weights.
    shapes: of input and output.
    """

    conv: Conv2d
    strided: Conv2d | None
    positions: npt.NDArray[np.int8]
    used: npt.NDArray[np.bool_]
    list_outputs: int
    numbers: Numbers
    residual: bool
    arrays: Mapping[str, Array]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    @functools.cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which bytes each list reads, (lists, bytes)."""
        return kept_channels(self.used, self.list_outputs)


def of_full_rows(conv: Conv2d) -> tuple[Conv2d, Conv2d | None]:
    """`unstrided` where rows of output are too short for a tile, and copying pixels pays."""
    return unstrided(conv) if conv.out_width < SHORT else (conv, None)


def list_outputs_of(problem: Problem) -> int:
    """Output channels that share a list, 0 without."""
    pattern = None if problem.detection is None else problem.detection.pattern
    return pattern.n if isinstance(pattern, OneByN) else 0


@functools.lru_cache(maxsize=4)
def integer_layer(problem: Problem) -> Layer:
    """The layer of a problem of int8."""
    integers, conv, weight = problem.integers, problem.as_conv, problem.oihw
    assert integers is not None
    outputs = padded_outputs(conv.out_channels)
    offset, scale = np.zeros(outputs, np.int32), np.zeros(outputs, np.float32)
    offset[: conv.out_channels] = whole_offset(weight, integers)
    scale[: conv.out_channels] = integers.scale
    positions = positions_of(weight, conv)
    arrays: dict[str, Array] = {"offset": offset, "scale": scale, "steps": integers.steps}
    if integers.late_bias is not None:
        padding = (0, outputs - conv.out_channels)
        arrays["late_bias"] = np.pad(integers.late_bias.astype(np.float32), padding)
    return Layer(
        *of_full_rows(conv),
        positions,
        positions != 0,
        list_outputs_of(problem),
        Bytes(integers.epilogue, integers.x_zero if any(conv.padding) else 0),
        integers.residual is not None,
        arrays,
        problem.bytes_shapes,
    )
