"""Weights and biases of a convolution as the implicit GEMM reads them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nmcompile.errors import WeightError
from nmcompile.kernels.sparse_tensor_core.tiles import Gemm
from nmcompile.sparsity.tensor_core import pack_dense, pack_sparse

LARGEST = float(np.finfo(np.float16).max)


def to_half(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The nearest float16.

    Raises:
        WeightError: a weight is beyond what float16 can hold.
    """
    peak = float(np.abs(weight).max(initial=0.0))
    if not peak < LARGEST:
        raise WeightError(
            f"weight of shape {weight.shape}: expected magnitudes below {LARGEST:g} (float16), "
            f"found {peak:g}; scale the layer, or compile for a target that computes in float32"
        )
    return weight.astype(np.float16)


def weight_matrix(weight: npt.NDArray[np.float32], gemm: Gemm) -> npt.NDArray[np.float16]:
    """OIHW to (output channels, depth), zero-padded to whole tiles; depth is (tap, channel)."""
    conv = gemm.conv
    rows = gemm.channel_tiles * gemm.config.channels
    taps = np.zeros((rows, conv.taps, gemm.in_channels), np.float16)
    lines = to_half(weight).transpose(0, 2, 3, 1)
    taps[: conv.out_channels, :, : conv.in_channels] = lines.reshape(
        conv.out_channels, conv.taps, conv.in_channels
    )
    flat = taps.reshape(rows, -1)
    return np.pad(flat, ((0, 0), (0, gemm.depth - flat.shape[1])))


def pack_weights(weight: npt.NDArray[np.float32], gemm: Gemm) -> npt.NDArray[np.int32]:
    """One block per (tile of output channels, slice of the depth), flat.

    Raises:
        PatternError: the kernel is sparse and the weight does not hold 2:4.
        WeightError: a weight is beyond float16.
    """
    matrix = weight_matrix(weight, gemm)
    if gemm.sparse:
        words = pack_sparse(matrix, gemm.config.channels, gemm.config.warp_channels)
    else:
        words = pack_dense(matrix, gemm.config.channels)
    return words.reshape(-1).view(np.int32)


def pack_bias(bias: npt.NDArray[np.float32], gemm: Gemm) -> npt.NDArray[np.float32]:
    """Padded with zeros to whole tiles of output channels."""
    missing = gemm.channel_tiles * gemm.config.channels - len(bias)
    return np.pad(bias.astype(np.float32), (0, missing))
