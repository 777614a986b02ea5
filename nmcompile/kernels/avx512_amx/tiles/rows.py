"""What stands behind the catalogue's rows on tiles: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_amx.tiles.config import TilesConfig
from nmcompile.kernels.avx512_amx.tiles.conv import emit_tiles
from nmcompile.kernels.avx512_amx.tiles.layer import layer_of
from nmcompile.kernels.avx512_amx.tiles.layout import Steps
from nmcompile.kernels.avx512_amx.tiles.packing import Gathering, pack_dense, pack_gathered
from nmcompile.kernels.avx512_amx.tiles.tiling import Work, ranked
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.avx512_vnni.lanes import rows as lanes
from nmcompile.kernels.avx512_vnni.lanes.config import OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.lists import gathers_of
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.problem import Array, Candidate, Lowered, Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.kernels.verdict import decline_slower
from nmcompile.sparsity import NM

VECTORS = (1, 2, 4)


def refuse_dense(problem: Problem) -> str | None:
    """Of integers: groups, which have kernels of their own, and sums that may leave int32."""
    if problem.integers is None:
        return None
    groups = problem.spec.groups if isinstance(problem.spec, Conv2d) else 1
    if groups > 1:
        return f"its {groups} groups have too few channels each to fill tiles"
    return lanes.INTEGERS.refuse_dense(problem)


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks that do not fill columns of tiles."""
    pattern = None if problem.detection is None else problem.detection.pattern
    if isinstance(pattern, NM):
        return (
            f"tiles skip input channels that all of {LANES} outputs leave out, and {pattern} has "
            "none: it is multiplied as if it were dense"
        )
    return lanes.refuse_blocks(problem, "tiles") or refuse_dense(problem)


def decline_one_by_n(problem: Problem) -> str | None:
    """Where multiplying all weights is expected to be faster."""
    return decline_slower(problem, one_by_n_configs, dense_configs, "multiplying the zeros too")


def decline_dense(problem: Problem) -> str | None:
    """Where lists, on vectors, are expected to be faster."""
    integers = problem.integers
    if integers is None:
        return None
    # The model of the vectors does not count what a residual takes.
    bare = problem
    if integers.residual is not None:
        bare = replace(problem, integers=replace(integers, residual=None))
    own = lanes.INTEGERS
    for refuse, configs, name in (
        (own.refuse_one_by_n, own.one_by_n_configs, "a list per block of outputs"),
        (own.refuse_nm, own.nm_configs, "a list per output"),
    ):
        if refuse(bare) is None:
            reason = decline_slower(bare, dense_configs, configs, name)
            if reason is not None:
                return reason
    return None


@functools.lru_cache(maxsize=8)
def dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All bytes."""
    tile = layer_of(problem)
    layer = tile.layer
    reading = Reading.of(layer.conv, quads=True)
    rows, columns = reading.window
    steps = float(rows * columns * Steps.of(reading.segment).count)
    works = []
    for vectors in VECTORS:
        if vectors == 1 or (vectors - 1) * LANES < layer.conv.out_channels:
            groups = OutputGroups.of(layer.conv.out_channels, vectors).count
            works.append((vectors, Work(np.full(groups, steps))))
    return ranked(reading, "dense", works, tile.product, layer.residual)


@functools.lru_cache(maxsize=8)
def one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """The bytes of each list, gathered first."""
    tile = layer_of(problem)
    layer, conv, kept = tile.layer, tile.layer.conv, tile.layer.kept
    gathering = Gathering.of(conv, kept)
    sources, pieces = gathers_of(kept)
    if gathering.pitch <= BYTES:
        taps = conv.kernel[0] * (1 if gathering.by_row else conv.kernel[1])
        steps = np.full(len(kept), float(taps * gathering.steps.count))
    else:
        steps = pieces * conv.taps
    works = []
    for vectors in VECTORS:
        if layer.list_outputs % (vectors * LANES) == 0:
            works.append((vectors, Work(steps, sources, pieces, gathering, layer.list_outputs)))
    reading = Reading.of(conv, quads=False)
    return ranked(reading, "gathered", works, tile.product, layer.residual)


def packing_of(config: TilesConfig) -> Hashable:
    """What of the tile sizes says how weights are packed."""
    return config.method, config.vectors, config.list_outputs


def lower_tiles(name: str, problem: Problem, config: TilesConfig | None) -> Lowered:
    """Convolution or matrix product with tiles from the `..._configs` function of its row."""
    assert config is not None
    tile = layer_of(problem)
    layer = tile.layer
    gathering, reading = None, Reading.of(layer.conv, quads=config.method == "dense")
    if config.method == "gathered":
        packed = pack_gathered(layer.positions, layer.kept, layer.conv, config)
        gathering = Gathering.of(layer.conv, layer.kept)
    else:
        packed = pack_dense(layer.positions, reading, config)
    arrays: dict[str, Array] = {**packed, **layer.arrays}
    numbers = layer.numbers, tile.product
    args = (name, *layer.shapes, reading, *numbers, config, gathering, layer.strided)
    return Lowered(emit_tiles, args, arrays)
