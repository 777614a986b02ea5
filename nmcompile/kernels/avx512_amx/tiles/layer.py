"""A layer as tiles see it: without groups, and without strides that tear a row of pixels apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from nmcompile.kernels.avx512_amx.instructions import Product
from nmcompile.kernels.avx512_bf16.layer import brain_layer
from nmcompile.kernels.avx512_vnni.lanes.layer import Layer, integer_layer
from nmcompile.kernels.avx512_vnni.lanes.reading import unstrided
from nmcompile.kernels.problem import Problem


@dataclass(frozen=True, eq=False)
class TileLayer:
    """One convolution or matrix product.

    layer: whose groups are zeros of the weight.
    product: the instruction.
    """

    layer: Layer
    product: Product


@functools.lru_cache(maxsize=4)
def layer_of(problem: Problem) -> TileLayer:
    """The layer of a problem of int8 or bfloat16."""
    integers = problem.integers is not None
    layer = integer_layer(problem) if integers else brain_layer(problem)
    conv, strided = unstrided(replace(layer.conv, groups=1))
    layer = replace(layer, conv=conv, strided=layer.strided or strided)
    return TileLayer(layer, "int8" if integers else "bfloat16")
