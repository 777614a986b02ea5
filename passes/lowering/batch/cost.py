"""Where to cut a function for `lower_batch`, by counting bytes that leave the caches.

Arithmetic costs the same for a batch as image by image, up to the kernels' ragged edges, so only
traffic is counted. Per call of an operator:

    activations * (misses of L2 / L2_MISS + misses of L3 / L3_MISS) + weights / WEIGHTS + CALL

where the activations are those of all images of the call, and a cache of c bytes misses the share
1 - c / activations of them. Few images make activations cheap, many make weights and calls cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmcompile.kernels.cores import cores
from nmcompile.passes.lowering.batch.rules import Early
from nmcompile.passes.lowering.matching.match import Group, Matcher
from nmcompile.passes.lowering.view import Expr, FunctionView, shape_of

# Measured on an AMD EPYC of family 25 with ResNet-50, layer by layer at batch 1 and 8: what a
# kernel loses per byte, which is less than the bandwidth says as far as prefetching hides it.
L2_BYTES = 1 << 20  # of each core
L3_BYTES = 16 << 20  # of 32 MiB: what is older than the last layer, and other cores, take the rest
L2_MISS = 45e9  # bytes per second of activations that L3 serves
L3_MISS = 36e9  # on top of that where memory does: 20e9 together
WEIGHTS = 60e9  # weights are read in order, and hidden best
CALL = 2e-6  # seconds: waking the threads and entering the kernel


@dataclass(frozen=True, eq=False)
class Split:
    """Where a function is cut: behind `cut`, with `group` images at a time before it.

    saved: seconds per batch by the model.
    """

    cut: Expr
    group: int
    batch: int
    saved: float


@dataclass(frozen=True)
class _Traffic:
    """Bytes of one operator: activations of one image, in and out, and weights."""

    activations: int
    weights: int

    def seconds(self, images: int) -> float:
        """The cost of one call."""
        moved = images * self.activations
        l2 = max(0, moved - L2_BYTES * cores()) / L2_MISS
        l3 = max(0, moved - L3_BYTES) / L3_MISS
        return l2 + l3 + self.weights / WEIGHTS + CALL


def choose_split(function: Any) -> Split | None:
    """The cut and the group that save most; None where the whole batch at once is fastest."""
    batch = _batch_of(function)
    if batch < 2:
        return None
    view = FunctionView(function)
    early = Early(function, view, batch)
    matcher = Matcher(function)
    inner = {var for group in matcher.groups for var in group.members[:-1]}
    # A cut inside a group would take its activation out of the kernel.
    cuts = [var for var in early.before if var not in inner and early.separates(var)]
    traffic = _traffic(view, early, matcher.groups, batch)
    best: Split | None = None
    for images in range(1, batch // 2 + 1):
        if batch % images:
            continue
        saved = {
            var: row.seconds(batch) - batch // images * row.seconds(images)
            for var, row in traffic.items()
        }
        for cut in cuts:
            joined = 2 * 4 * math.prod(shape_of(cut) or ()) / L2_MISS
            gain = sum(saved.get(var, 0.0) for var in early.members(cut)) - joined
            if gain > (0.0 if best is None else best.saved):
                best = Split(cut, images, batch, gain)
    return best


def _batch_of(function: Any) -> int:
    """The first extent of the first image that a function takes; 0 if it takes none."""
    shapes = [shape_of(param) or () for param in function.params]
    return next((shape[0] for shape in shapes if len(shape) == 4), 0)


def _traffic(
    view: FunctionView, early: Early, groups: list[Group], batch: int
) -> dict[Expr, _Traffic]:
    """Bytes of each call that may come before a cut, by the value it computes."""
    found: dict[Expr, _Traffic] = {}
    absorbed = {var for group in groups for var in group.members}
    for group in groups:
        if group.out in early.before:
            moved = [group.x, group.out, *([] if group.residual is None else [group.residual])]
            weights = 0 if group.weight is None else 4 * int(np.count_nonzero(group.weight))
            found[group.out] = _Traffic(sum(map(_bytes, moved)) // batch, weights)
    for var in early.before:
        if var not in absorbed:
            moved = [var, *view.operands(var)]
            found[var] = _Traffic(sum(map(_bytes, moved)) // batch, 0)
    return found


def _bytes(expr: Expr) -> int:
    return 4 * math.prod(shape_of(expr) or ())
