"""Seeded inputs and weights, and what convolutions of them have to give.

Numbers come from the raw bits of PCG64, which numpy promises never to change, so that a kit says
with a few digits what its machine code is to be run on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import NM, parse_pattern, project

Array = npt.NDArray[Any]
Single = npt.NDArray[np.float32]
PRUNABLE = 16  # both channel counts of a pruned layer are a multiple
VECTOR = 8  # channels of an activation in memory are a multiple


def words(seed: int, count: int) -> npt.NDArray[np.int16]:
    """Uniform 16-bit integers."""
    raw = np.random.PCG64(seed).random_raw(-(-count // 4))
    return np.asarray(raw, np.uint64).view(np.int16)[:count]


def whole(seed: int, shape: tuple[int, ...], limit: int) -> Single:
    """Whole numbers from -limit to limit."""
    drawn = words(seed, int(np.prod(shape))) % np.int16(2 * limit + 1) - np.int16(limit)
    return drawn.reshape(shape).astype(np.float32)


def uniform(seed: int, shape: tuple[int, ...], deviation: float) -> Single:
    """Uniform numbers of mean zero."""
    scale = np.float32(deviation * 3**0.5 / 32768)
    drawn = words(seed, int(np.prod(shape))).astype(np.float32)
    result: Single = (drawn * scale).reshape(shape)
    return result


def prune(weight: Single, pattern: str) -> Single:
    """Project an OIHW weight whose input channels are a multiple of the pattern's group."""
    kept: Single = project(weight, parse_pattern(pattern))
    return kept


def layer_arrays(conv: Conv2d, pattern: str, exact: bool, seed: int) -> tuple[Single, Single]:
    """Weight (OIHW) and bias of one layer, both exact in float16.

    exact: whole numbers, so small that float32 sums them without an error.
    """
    shape = (conv.out_channels, conv.group_in, *conv.kernel)
    if exact:
        return prune(whole(seed, shape, 2), pattern), whole(seed + 1, shape[:1], 8)
    fan_in = conv.group_in * conv.taps
    weight = uniform(seed, shape, (2 / fan_in) ** 0.5).astype(np.float16).astype(np.float32)
    return prune(weight, pattern), uniform(seed + 1, shape[:1], 0.5)


def network_arrays(index: int, shape: tuple[int, ...], pattern: str) -> tuple[Single, Single]:
    """Weight and bias of layer `index` of a network, of which narrow layers stay dense.

    Pruned weights are scaled to the energy of dense ones, so that activations keep their size.
    """
    weight = uniform(1000 + 2 * index, shape, (1 / np.prod(shape[1:])) ** 0.5)
    if not any(extent % PRUNABLE for extent in shape[:2]):
        weight = prune(weight, pattern) * np.float32(energy_kept(pattern) ** -0.5)
    rounded = weight.astype(np.float16).astype(np.float32)
    return rounded, uniform(1001 + 2 * index, shape[:1], 0.1)


def energy_kept(pattern: str) -> float:
    """Share of the energy of uniform numbers that projecting onto N:M is expected to keep.

    The k-th smallest magnitude of m has E[u**2] = k (k + 1) / ((m + 1) (m + 2)).
    """
    chosen = parse_pattern(pattern)
    if not isinstance(chosen, NM):
        return 1.0
    n, m = chosen.n, chosen.m
    kept = sum(k * (k + 1) for k in range(m - n + 1, m + 1)) / ((m + 1) * (m + 2))
    return kept / (m / 3)


def layer_input(conv: Conv2d, exact: bool, seed: int) -> npt.NDArray[np.float16]:
    """Activations as they lie in memory: NHWC float16, zeros behind the last channel."""
    channels = -(-conv.in_channels // VECTOR) * VECTOR
    shape = (conv.batch, conv.in_height, conv.in_width, conv.in_channels)
    values = whole(seed, shape, 2) if exact else uniform(seed, shape, 1.0)
    out = np.zeros((*shape[:3], channels), np.float16)
    out[..., : conv.in_channels] = values
    return out


class NumpyMath:
    """Reference convolutions in numpy."""

    def array(self, values: Array) -> Any:
        """The values where this computes, in float32."""
        return values.astype(np.float32)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Zeros, float32."""
        return np.zeros(shape, np.float32)

    def relu(self, values: Any) -> Any:
        """The positive part."""
        return np.maximum(values, 0)

    def rounded(self, values: Any) -> Any:
        """Rounded to float16 and back."""
        return values.astype(np.float16).astype(np.float32)

    def norm(self, values: Any) -> float:
        """The Euclidean norm."""
        flat = values.ravel()
        return float(np.sqrt(np.dot(flat, flat)))


class TorchMath:
    """The same on torch's current device."""

    def __init__(self, device: str = "cuda") -> None:
        import torch

        self._torch, self._device = torch, device
        torch.backends.cuda.matmul.allow_tf32 = False  # the reference is float32

    def array(self, values: Array) -> Any:
        """The values where this computes, in float32."""
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device).float()

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Zeros, float32."""
        return self._torch.zeros(shape, device=self._device)

    def relu(self, values: Any) -> Any:
        """The positive part."""
        return values.relu_()

    def rounded(self, values: Any) -> Any:
        """Rounded to float16 and back."""
        return values.half().float()

    def norm(self, values: Any) -> float:
        """The Euclidean norm."""
        return float(values.double().norm())


def reference(math: Any, conv: Conv2d, x: Array, weight: Single, bias: Single) -> Any:
    """relu(conv(x) + bias) in float32, (N, OH, OW, O), as a sum of matrix products, one per tap.

    Not by the library's convolution, whose transforms are not exact on whole numbers.
    """
    top, left, bottom, right = conv.padding
    (down, across), (high, wide) = conv.stride, conv.kernel
    image = math.array(x[..., : conv.in_channels])
    n, height, width, channels = image.shape
    padded = math.zeros((n, height + top + bottom, width + left + right, channels))
    padded[:, top : top + height, left : left + width] = image
    out = math.zeros((n * conv.out_pixels, conv.out_channels))
    lines = math.array(weight.transpose(2, 3, 1, 0).reshape(high * wide, channels, -1))
    for row in range(high):
        for column in range(wide):
            last_row = row + (conv.out_height - 1) * down + 1
            last_column = column + (conv.out_width - 1) * across + 1
            part = padded[:, row:last_row:down, column:last_column:across]
            out += part.reshape(-1, channels) @ lines[row * wide + column]
    out += math.array(bias)
    return math.relu(out).reshape(n, conv.out_height, conv.out_width, conv.out_channels)


def errors(math: Any, found: Any, expected: Any) -> tuple[float, float]:
    """Norm of the error over the norm of the reference, and the largest error over its largest."""
    difference = found - expected
    largest = float(abs(expected).max())
    norm = math.norm(expected)
    return math.norm(difference) / (norm or 1.0), float(abs(difference).max()) / (largest or 1.0)
