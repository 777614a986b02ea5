"""A loop that reaches the roof of products of bfloat16 in lanes: `vdpbf16ps` on registers alone."""

from __future__ import annotations

from typing import Any

from nmcompile.kernels.avx512 import roof_loop
from nmcompile.kernels.avx512_bf16.emit import SIZE, dot, instructions
from nmcompile.kernels.avx512_vnni import roof_loop as lanes
from nmcompile.kernels.avx512_vnni.emit import QUAD

OPERATIONS = roof_loop.FLOPS * (QUAD // SIZE)  # of one call


def emit_roof_loop(name: str) -> Any:
    """The TIR function (data, out) of as many floats as those of the float32 loops."""
    return lanes.emit_roof_loop(name, dot, "float32", instructions())
