"""A layer of bfloat16 as lanes and tiles see it: two bytes for each channel, channels padded."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from nmcompile.kernels.avx512_bf16.layout import padded, rounded
from nmcompile.kernels.avx512_bf16.numbers import Brain
from nmcompile.kernels.avx512_vnni.lanes.config import padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.layer import Layer, list_outputs_of, of_full_rows
from nmcompile.kernels.avx512_vnni.lanes.packing import positions_of
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Linear


@functools.lru_cache(maxsize=4)
def brain_layer(problem: Problem) -> Layer:
    """The layer of a problem of bfloat16."""
    spec, weight, epilogue = problem.spec, problem.oihw, problem.epilogue
    if isinstance(spec, Linear):  # its rows are images of one pixel
        conv = Conv2d(spec.rows, spec.in_features, 1, 1, spec.out_features, (1, 1))
    else:
        conv = problem.conv
    inputs, outputs = padded(conv.in_channels), padded(conv.out_channels)
    numbers = np.zeros((outputs, conv.taps, inputs), np.float32)
    numbers[: conv.out_channels, :, : conv.in_channels] = positions_of(weight, conv)
    bits = rounded(numbers)
    bias = np.zeros(padded_outputs(outputs), np.float32)
    if problem.bias is not None:
        bias[: conv.out_channels] = problem.bias
    # Behind channels that were added, groups would not begin where they say: they are zeros.
    whole = (inputs, outputs) == (conv.in_channels, conv.out_channels)
    groups = conv.groups if whole else 1
    own = replace(conv, in_channels=2 * inputs, out_channels=outputs, groups=groups)
    return Layer(
        *of_full_rows(own),
        bits.view(np.int8).reshape(outputs, conv.taps, -1),
        # Of the weights before they were rounded: a list keeps what the pattern keeps.
        np.repeat(numbers != 0, 2, axis=2),
        list_outputs_of(problem),
        Brain(replace(epilogue, bias=False)),
        epilogue.residual,
        {"bias": bias},
        (
            (conv.batch, conv.in_height, conv.in_width, inputs),
            (conv.batch, conv.out_height, conv.out_width, outputs),
        ),
    )
