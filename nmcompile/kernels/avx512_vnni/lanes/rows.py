"""What stands behind the catalogue's rows with outputs in lanes: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.emit import QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.conv import emit_lanes
from nmcompile.kernels.avx512_vnni.lanes.costs import BYTES_COSTS, Costs
from nmcompile.kernels.avx512_vnni.lanes.layer import Layer, integer_layer
from nmcompile.kernels.avx512_vnni.lanes.lists import Quads, gathers_of
from nmcompile.kernels.avx512_vnni.lanes.packing import (
    pack_lanes,
    quads_of,
    quads_per_group,
    segments_of,
)
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.avx512_vnni.lanes.tiling import Work, ranked, vectors_of
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.kernels.verdict import MADE_FOR, accept, decline_slower
from nmcompile.sparsity import Dense, OneByN

LARGEST_PRODUCT = 255 * 128
DENSE_VECTORS = 8
PICKED_VECTORS = 4


@functools.lru_cache(maxsize=4)
def refuse_sums(problem: Problem) -> str | None:
    """Sums of integers that may leave int32."""
    integers = problem.integers
    assert integers is not None
    weight = problem.oihw
    offset = np.zeros(1, np.int64) if integers.offset is None else integers.offset.astype(np.int64)
    if weight[0].size * LARGEST_PRODUCT + int(np.abs(offset).max()) < 1 << 31:
        return None
    weights = weight.reshape(len(weight), -1).astype(np.int64)
    above, below = 255 - integers.x_zero, integers.x_zero
    rising, falling = weights.clip(0).sum(axis=1), (-weights).clip(0).sum(axis=1)
    highest = int((rising * above + falling * below + offset).max())
    lowest = int((offset - rising * below - falling * above).min())
    if -(1 << 31) <= lowest and highest < 1 << 31:
        return None
    return f"its sums may be {lowest} to {highest}, beyond the 32 bits they are kept in"


def refuse_blocks(problem: Problem, units: str) -> str | None:
    """Weights that are not in 1xN blocks which fill `units` of 16 and follow each other."""
    pattern = None if problem.detection is None else problem.detection.pattern
    if not isinstance(pattern, OneByN):
        return f"{MADE_FOR}1xN, not {pattern or Dense()}"
    if pattern.n % LANES:
        return f"its blocks of {pattern.n} output channels do not fill {units} of {LANES}"
    if problem.scattered is not None:
        return "the filters of its blocks are scattered: every value would be stored by itself"
    return None


@dataclass(frozen=True)
class LanesRows:
    """The rows of one kind of numbers.

    layer_of: the layer of a problem.
    costs: of its products, for the model of tile sizes.
    refuse_sums: the reason why sums cannot be kept.
    """

    layer_of: Callable[[Problem], Layer]
    costs: Costs
    refuse_sums: Callable[[Problem], str | None] = accept

    def refuse_nm(self, problem: Problem) -> str | None:
        """Dense weights of one group."""
        detection = problem.detection
        dense = detection is None or isinstance(detection.pattern, Dense)
        if self.layer_of(problem).conv.groups == 1 and dense:
            density = 1.0 if detection is None else detection.density
            return f"the weight is dense (density {density:.2f})"
        return self.refuse_sums(problem)

    def refuse_dense(self, problem: Problem) -> str | None:
        """Groups that do not fill vectors."""
        layer = self.layer_of(problem)
        conv, size = layer.conv, layer.numbers.size
        if conv.groups == 1 or (conv.group_out % LANES == 0 and conv.group_in % QUAD == 0):
            return self.refuse_sums(problem)
        return (
            f"{conv.group_out} output and {conv.group_in // size} input channels per group: whole "
            f"vectors need multiples of {LANES} and of {QUAD // size}"
        )

    def refuse_one_by_n(self, problem: Problem) -> str | None:
        """Weights in 1xN blocks that fill vectors and follow each other."""
        return refuse_blocks(problem, "vectors") or self.refuse_sums(problem)

    def decline_nm(self, problem: Problem) -> str | None:
        """Where multiplying all weights is expected to be faster."""
        if self.refuse_dense(problem) is not None:
            return None
        return decline_slower(
            problem, self.nm_configs, self.dense_configs, "multiplying the zeros too"
        )

    def decline_one_by_n(self, problem: Problem) -> str | None:
        """Where a list per output, or multiplying all weights, is expected to be faster."""
        own = self.one_by_n_configs
        reason = decline_slower(problem, own, self.nm_configs, "a list per output")
        if reason is not None or self.refuse_dense(problem) is not None:
            return reason
        return decline_slower(problem, own, self.dense_configs, "multiplying the zeros too")

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def nm_configs(self, problem: Problem) -> Sequence[Candidate]:
        """A list per output channel."""
        layer = self.layer_of(problem)
        reading = Reading.of(layer.conv, quads=False)
        each = quads_of(segments_of(layer.used, reading))
        return ranked(reading, "picked", _picked_works(layer.conv, each), self.costs)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def one_by_n_configs(self, problem: Problem) -> Sequence[Candidate]:
        """A list per block of output channels: its bytes gathered first, or read where they lie."""
        layer = self.layer_of(problem)
        found = (*_gathered_configs(layer, self.costs), *_listed_configs(layer, self.costs))
        return tuple(sorted(found, key=lambda candidate: candidate.cycles))

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def dense_configs(self, problem: Problem) -> Sequence[Candidate]:
        """All bytes."""
        conv = self.layer_of(problem).conv
        reading = Reading.of(conv, quads=True)
        works = []
        for vectors in vectors_of(conv.out_channels, DENSE_VECTORS):
            if conv.groups == 1 or conv.group_out % (vectors * LANES) == 0:
                rows, columns = reading.window
                groups = OutputGroups.of(conv.out_channels, vectors).count
                starts = np.full(groups, float(rows * columns))
                works.append(Work(vectors, starts * reading.quads, starts))
        return ranked(reading, "dense", works, self.costs)

    @staticmethod
    def packing_of(config: LanesConfig) -> Hashable:
        """What of the tile sizes says how weights are packed."""
        return config.method, config.vectors, config.list_outputs

    def lower(self, name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
        """Convolution or matrix product with tiles from the `..._configs` function of its row."""
        assert config is not None
        layer = self.layer_of(problem)
        reading = Reading.of(layer.conv, quads=config.method == "dense")
        packed = pack_lanes(layer.positions, layer.used, reading, config, layer.numbers.size)
        arrays: dict[str, Array] = {**packed.arrays, **layer.arrays}
        args = (name, *layer.shapes, reading, layer.numbers, config, packed.gathered, layer.strided)
        return Lowered(emit_lanes, args, arrays)


INTEGERS = LanesRows(integer_layer, BYTES_COSTS, refuse_sums)


def _listed_configs(layer: Layer, costs: Costs) -> Sequence[Candidate]:
    conv, each = layer.conv, layer.list_outputs
    reading = Reading.of(conv, quads=False)
    found = Quads.each(segments_of(layer.used, reading), each, layer.numbers.size)
    quads = np.array([float(list_.count) for list_ in found])
    picked = quads - np.array([float(list_.following) for list_ in found])
    works = []
    for vectors in vectors_of(each, DENSE_VECTORS):
        if each % (vectors * LANES) == 0:
            groups = OutputGroups.of(conv.out_channels, vectors).count
            own, others = (
                np.repeat(count, each // (vectors * LANES))[:groups] for count in (quads, picked)
            )
            loops = np.full(groups, 2.0)
            works.append(Work(vectors, own, loops, list_outputs=each, picked=others))
    return ranked(reading, "listed", works, costs)


def _picked_works(conv: Conv2d, quads: npt.NDArray[np.uint8]) -> list[Work]:
    """What tiles have to do, by vectors, where each output needs so many quads of each block."""
    works = []
    for vectors in vectors_of(conv.out_channels, PICKED_VECTORS):
        needed = quads_per_group(quads, vectors)
        total = needed.sum(axis=(1, 2)).astype(float)
        starts = np.count_nonzero(needed, axis=(1, 2)).astype(float)
        works.append(Work(vectors, total, starts))
    return works


def _gathered_configs(layer: Layer, costs: Costs) -> Sequence[Candidate]:
    conv, kept = layer.conv, layer.kept
    quads = -(-np.count_nonzero(kept, axis=1) // QUAD) * conv.taps
    sources, pieces = gathers_of(kept)
    works = []
    per_list = layer.list_outputs // LANES
    for vectors in vectors_of(layer.list_outputs, DENSE_VECTORS):
        if per_list % vectors == 0:
            groups = OutputGroups.of(conv.out_channels, vectors).count
            each = np.repeat(quads, per_list // vectors)[:groups].astype(float)
            starts = np.full(groups, float(conv.taps))
            works.append(Work(vectors, each, starts, sources, pieces, layer.list_outputs))
    return ranked(Reading.of(conv, quads=False), "gathered", works, costs)
