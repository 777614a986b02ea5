"""What stands behind the GPU rows of the catalogue: tiles, lowerings and verdicts.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nmcompile.kernels.problem import MADE_FOR, Array, Candidate, Lowered, Problem
from nmcompile.kernels.sparse_tensor_core.conv import emit_conv
from nmcompile.kernels.sparse_tensor_core.packing import pack_bias, pack_weights
from nmcompile.kernels.sparse_tensor_core.tiles import (
    MAX_ELEMENTS,
    MAX_WINDOW,
    TILES,
    Gemm,
    Method,
    TileConfig,
)
from nmcompile.kernels.sparse_tensor_core.tiling import conv_configs, find_gpu
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

    def refuse(self, problem: Problem) -> str | None:
        """What the kernel cannot run: groups, large windows and, if sparse, weights without 2:4."""
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
        gemm = Gemm(conv, TILES[self.method][0], self.method)
        elements = max(
            conv.batch * conv.in_height * conv.in_width * gemm.in_channels,
            gemm.pixels * gemm.out_channels,
        )
        if elements > MAX_ELEMENTS:
            return f"an activation of {elements} elements: addresses have 31 bits; reduce the batch"
        return _refuse_weight(problem) if gemm.sparse else None

    def decline(self, problem: Problem) -> str | None:
        """Where another way is expected to be faster."""
        channels = problem.conv.in_channels
        if "dense" in self.others and channels < MIN_CHANNELS:
            return (
                f"{channels} input channels: under {MIN_CHANNELS} loading the window takes as long "
                "as multiplying densely"
            )
        cycles = self.configs(problem)[0].cycles
        for other in self.others:
            found = conv_configs(problem.conv, other, find_gpu(self.arch))[0].cycles
            if found < cycles:
                name = NAMES[other]
                return f"{name} is faster: {found:.3g} cycles counted, against {cycles:.3g}"
        return None

    def configs(self, problem: Problem) -> Sequence[Candidate]:
        """Tiles and splits, the best by the model first."""
        return conv_configs(problem.conv, self.method, find_gpu(self.arch))

    def lower(self, name: str, problem: Problem, config: TileConfig) -> Lowered:
        """The function and the packed weights."""
        assert problem.weight is not None
        gemm = Gemm(problem.conv, config, self.method)
        arrays: dict[str, Array] = {"weights": pack_weights(problem.weight, gemm)}
        if problem.bias is not None:
            arrays["bias"] = pack_bias(problem.bias, gemm)
        args = (name, problem.conv, problem.epilogue, config, self.method)
        scratch = gemm.scratch_shape if config.splits > 1 else ()
        return Lowered(emit_conv, args, arrays, scratch=scratch)


def _refuse_weight(problem: Problem) -> str | None:
    """Weights of which four neighbouring input channels hold more than two non-zeros."""
    assert problem.weight is not None
    found = first_broken_group(problem.weight)
    if found is None:
        return None
    pattern = Dense() if problem.detection is None else problem.detection.pattern
    if isinstance(pattern, Dense):
        return "the weight is dense; `nmc enforce` with 2:4 would make it sparse"
    out, channel, row, column = found
    where = (
        f"output channel {out}, input channels {channel} to {channel + GROUP - 1}, kernel position "
        f"({row}, {column})"
    )
    hint = ""
    if isinstance(pattern, NM) and pattern.axis == "flat":
        hint = ": its groups do not run along the input channels"
    return (
        f"{pattern} is not 2:4 along the input channels{hint} (over {KEPT} non-zeros in {where}); "
        "`nmc enforce` with 2:4 would make it so"
    )
