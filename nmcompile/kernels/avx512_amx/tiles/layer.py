"""A layer as tiles see it: without groups, and without strides that tear a row of pixels apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from nmcompile.kernels.avx512_amx.instructions import Product
from nmcompile.kernels.avx512_bf16.layer import brain_layer
from nmcompile.kernels.avx512_vnni.lanes.layer import Layer, integer_layer
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d


@dataclass(frozen=True, eq=False)
class TileLayer:
    """One convolution or matrix product.

    layer: whose groups are zeros of the weight.
    strided: a 1x1 convolution with a stride, of whose pixels the layer's is one without.
    product: the instruction.
    """

    layer: Layer
    strided: Conv2d | None
    product: Product


@functools.lru_cache(maxsize=4)
def layer_of(problem: Problem) -> TileLayer:
    """The layer of a problem of int8 or bfloat16."""
    integers = problem.integers is not None
    layer = integer_layer(problem) if integers else brain_layer(problem)
    conv, strided = _unstrided(replace(layer.conv, groups=1))
    return TileLayer(replace(layer, conv=conv), strided, "int8" if integers else "bfloat16")


def _unstrided(conv: Conv2d) -> tuple[Conv2d, Conv2d | None]:
    """The convolution that tiles compute, and the one whose pixels are brought together for it.

    Tiles of pixels that follow each other, whatever the row, are full ones.
    """
    if conv.kernel != (1, 1) or conv.stride == (1, 1) or any(conv.padding):
        return conv, None
    return replace(conv, in_height=conv.out_height, in_width=conv.out_width, stride=(1, 1)), conv
