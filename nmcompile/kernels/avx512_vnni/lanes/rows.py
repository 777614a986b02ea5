"""What stands behind the catalogue's rows with outputs in lanes: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.emit import QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, padded_outputs
from nmcompile.kernels.avx512_vnni.lanes.conv import emit_lanes
from nmcompile.kernels.avx512_vnni.lanes.packing import pack_lanes, quads_per_block, segments_of
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.avx512_vnni.lanes.tiling import dense_work, ranked, vectors_of
from nmcompile.kernels.integers import whole_offset
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.sparsity import Dense

DENSE_VECTORS = 8
PICKED_VECTORS = 4


def conv_of(problem: Problem) -> Conv2d:
    """The convolution that a problem is: a matrix product has a 1x1 one over its rows."""
    spec = problem.spec
    if isinstance(spec, Linear):
        return Conv2d(1, spec.in_features, 1, spec.rows, spec.out_features, (1, 1))
    return problem.conv


def refuse_nm(problem: Problem) -> str | None:
    """Dense weights of one group."""
    detection = problem.detection
    if conv_of(problem).groups == 1 and (detection is None or isinstance(detection.pattern, Dense)):
        density = 1.0 if detection is None else detection.density
        return f"the weight is dense (density {density:.2f})"
    return None


def refuse_dense(problem: Problem) -> str | None:
    """Groups that do not fill vectors."""
    conv = conv_of(problem)
    if conv.groups == 1 or (conv.group_out % LANES == 0 and conv.group_in % QUAD == 0):
        return None
    return (
        f"{conv.group_out} output and {conv.group_in} input channels per group: whole vectors need "
        f"multiples of {LANES} and of {QUAD}"
    )


def decline_nm(problem: Problem) -> str | None:
    """Where multiplying all weights is expected to be faster."""
    if refuse_dense(problem) is not None:
        return None
    return _decline_slower(problem, nm_configs, dense_configs, "multiplying the zeros too")


@functools.lru_cache(maxsize=4)
def nm_configs(problem: Problem) -> Sequence[Candidate]:
    """A list per output channel."""
    conv = conv_of(problem)
    assert problem.weight is not None
    reading = Reading.of(conv, quads=False)
    segments = segments_of(_oihw(problem), reading)
    work = {}
    for vectors in vectors_of(conv.out_channels, PICKED_VECTORS):
        needed = quads_per_block(segments, vectors)
        work[vectors] = (
            needed.sum(axis=(1, 2)).astype(float),
            np.count_nonzero(needed, axis=(1, 2)).astype(float),
        )
    return ranked(reading, "picked", work)


@functools.lru_cache(maxsize=4)
def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All bytes."""
    conv = conv_of(problem)
    vectors = vectors_of(conv.out_channels, DENSE_VECTORS)
    if conv.groups > 1:
        vectors = [n for n in vectors if conv.group_out % (n * LANES) == 0]
    reading = Reading.of(conv, quads=True)
    return ranked(reading, "dense", dense_work(reading, vectors))


def lower_lanes(name: str, problem: Problem, config: LanesConfig | None) -> Lowered:
    """Convolution or matrix product with tiles from the `..._configs` function of its row."""
    assert config is not None and problem.integers is not None
    integers, conv = problem.integers, conv_of(problem)
    weight = _oihw(problem)
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
    x_shape, out_shape = _shapes(problem)
    args = (name, x_shape, out_shape, reading, integers.epilogue, config, packed.sizes, zero)
    return Lowered(emit_lanes, args, arrays)


def _oihw(problem: Problem) -> npt.NDArray[np.int8]:
    weight = problem.weight
    assert weight is not None
    return weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight


def _shapes(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spec = problem.spec
    if isinstance(spec, Linear):
        return (*spec.lead, spec.in_features), (*spec.lead, spec.out_features)
    conv = problem.conv
    return (
        (conv.batch, conv.in_height, conv.in_width, conv.in_channels),
        (conv.batch, conv.out_height, conv.out_width, conv.out_channels),
    )


Configs = Callable[[Problem], Sequence[Candidate]]


def _decline_slower(problem: Problem, own: Configs, other: Configs, name: str) -> str | None:
    """One kernel where the model counts fewer cycles for another."""
    cycles, others = own(problem)[0].cycles, other(problem)[0].cycles
    if cycles <= others:
        return None
    return (
        f"{name} is faster: {others / 1e6:.2g} million cycles counted, against {cycles / 1e6:.2g}"
    )
