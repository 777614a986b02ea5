"""What stands behind the catalogue's rows with outputs in lanes: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.emit import QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, OutputGroups, padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.conv import emit_lanes
from nmcompile.kernels.avx512_vnni.lanes.packing import (
    gathers_of,
    kept_channels,
    listed,
    pack_lanes,
    positions_of,
    quads_of,
    quads_per_group,
    segments_of,
)
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.avx512_vnni.lanes.tiling import Work, ranked, vectors_of
from nmcompile.kernels.integers import whole_offset
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.kernels.verdict import MADE_FOR, decline_slower
from nmcompile.sparsity import Dense, OneByN

LARGEST_PRODUCT = 255 * 128
DENSE_VECTORS = 8
PICKED_VECTORS = 4


def conv_of(problem: Problem) -> Conv2d:
    """The convolution that a problem is: a matrix product has a 1x1 one over its rows."""
    spec = problem.spec
    if isinstance(spec, Linear):
        return Conv2d(1, spec.in_features, 1, spec.rows, spec.out_features, (1, 1))
    return problem.conv


@functools.lru_cache(maxsize=4)
def _refuse_sums(problem: Problem) -> str | None:
    """Sums that may leave int32."""
    integers = problem.integers
    assert integers is not None
    weight = oihw(problem)
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


def refuse_nm(problem: Problem) -> str | None:
    """Dense weights of one group."""
    detection = problem.detection
    if conv_of(problem).groups == 1 and (detection is None or isinstance(detection.pattern, Dense)):
        density = 1.0 if detection is None else detection.density
        return f"the weight is dense (density {density:.2f})"
    return _refuse_sums(problem)


def refuse_dense(problem: Problem) -> str | None:
    """Groups that do not fill vectors."""
    conv = conv_of(problem)
    if conv.groups == 1 or (conv.group_out % LANES == 0 and conv.group_in % QUAD == 0):
        return _refuse_sums(problem)
    return (
        f"{conv.group_out} output and {conv.group_in} input channels per group: whole vectors need "
        f"multiples of {LANES} and of {QUAD}"
    )


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks that fill vectors and follow each other."""
    pattern = None if problem.detection is None else problem.detection.pattern
    if not isinstance(pattern, OneByN):
        return f"{MADE_FOR}1xN, not {pattern or Dense()}"
    if pattern.n % LANES:
        return f"its blocks of {pattern.n} output channels do not fill vectors of {LANES}"
    if problem.scattered is not None:
        return "the filters of its blocks are scattered: every byte would be stored by itself"
    return _refuse_sums(problem)


def decline_nm(problem: Problem) -> str | None:
    """Where multiplying all weights is expected to be faster."""
    if refuse_dense(problem) is not None:
        return None
    return decline_slower(problem, nm_configs, dense_configs, "multiplying the zeros too")


def decline_one_by_n(problem: Problem) -> str | None:
    """Where a list per output, or multiplying all weights, is expected to be faster."""
    reason = decline_slower(problem, one_by_n_configs, nm_configs, "a list per output")
    if reason is not None or refuse_dense(problem) is not None:
        return reason
    return decline_slower(problem, one_by_n_configs, dense_configs, "multiplying the zeros too")


@functools.lru_cache(maxsize=4)
def nm_configs(problem: Problem) -> Sequence[Candidate]:
    """A list per output channel."""
    conv = conv_of(problem)
    reading = Reading.of(conv, quads=False)
    each = quads_of(segments_of(oihw(problem), reading))
    return ranked(reading, "picked", _picked_works(conv, each))


@functools.lru_cache(maxsize=4)
def one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """A list per block of output channels: gathered first, or picked by all lanes alike."""
    found = (*_gathered_configs(problem), *_shared_configs(problem))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def _shared_configs(problem: Problem) -> Sequence[Candidate]:
    assert problem.detection is not None
    conv, pattern = conv_of(problem), problem.detection.pattern
    assert isinstance(pattern, OneByN)
    reading = Reading.of(conv, quads=False)
    each = quads_of(listed(segments_of(oihw(problem), reading), pattern.n))
    return ranked(reading, "picked", _picked_works(conv, each, pattern.n))


def _picked_works(conv: Conv2d, quads: npt.NDArray[np.uint8], list_outputs: int = 0) -> list[Work]:
    """What tiles have to do, by vectors, where each output needs so many quads of each block."""
    works = []
    for vectors in vectors_of(conv.out_channels, PICKED_VECTORS):
        needed = quads_per_group(quads, vectors)
        total = needed.sum(axis=(1, 2)).astype(float)
        starts = np.count_nonzero(needed, axis=(1, 2)).astype(float)
        works.append(Work(vectors, total, starts, list_outputs=list_outputs))
    return works


def _gathered_configs(problem: Problem) -> Sequence[Candidate]:
    conv = conv_of(problem)
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    kept = kept_channels(positions_of(oihw(problem), conv), pattern.n)
    quads = -(-np.count_nonzero(kept, axis=1) // QUAD) * conv.taps
    sources, pieces = gathers_of(kept)
    works = []
    per_list = pattern.n // LANES
    for vectors in vectors_of(pattern.n, DENSE_VECTORS):
        if per_list % vectors == 0:
            groups = OutputGroups.of(conv.out_channels, vectors).count
            each = np.repeat(quads, per_list // vectors)[:groups].astype(float)
            starts = np.full(groups, float(conv.taps))
            works.append(Work(vectors, each, starts, sources, pieces, pattern.n))
    return ranked(Reading.of(conv, quads=False), "gathered", works)


@functools.lru_cache(maxsize=4)
def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All bytes."""
    conv = conv_of(problem)
    reading = Reading.of(conv, quads=True)
    works = []
    for vectors in vectors_of(conv.out_channels, DENSE_VECTORS):
        if conv.groups == 1 or conv.group_out % (vectors * LANES) == 0:
            rows, columns = reading.window
            groups = OutputGroups.of(conv.out_channels, vectors).count
            starts = np.full(groups, float(rows * columns))
            works.append(Work(vectors, starts * reading.quads, starts))
    return ranked(reading, "dense", works)


def lower_lanes(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Convolution or matrix product with tiles from the `..._configs` function of its row."""
    assert config is not None and problem.integers is not None
    integers, conv = problem.integers, conv_of(problem)
    weight = oihw(problem)
    reading = Reading.of(conv, quads=config.method == "dense")
    packed = pack_lanes(weight, reading, config)
    lanes = padded_outputs(conv)
    offset = np.zeros(lanes, np.int32)
    offset[: conv.out_channels] = whole_offset(weight, integers)
    scale = np.zeros(lanes, np.float32)
    scale[: conv.out_channels] = integers.scale
    arrays: dict[str, Array] = dict(packed.arrays)
    arrays |= {"offset": offset, "scale": scale, "steps": integers.steps}
    zero = integers.x_zero if any(conv.padding) else 0
    x_shape, out_shape = problem.bytes_shapes
    args = (name, x_shape, out_shape, reading, integers.epilogue, config, packed.gathered, zero)
    return Lowered(emit_lanes, args, arrays)


def oihw(problem: Problem) -> npt.NDArray[np.int8]:
    """The weight of a convolution, or of a matrix product as one of 1x1."""
    weight = problem.weight
    assert weight is not None
    return weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight
