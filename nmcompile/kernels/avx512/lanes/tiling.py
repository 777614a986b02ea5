"""Choice of tile sizes for products with outputs in lanes, by counting cycles.

They compare with those of `panel.tiling`.
"""

from __future__ import annotations

from collections.abc import Callable

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.lanes.config import WORD, LanesConfig, Picking
from nmcompile.kernels.avx512.panel.tiling import REGISTERS, time_of
from nmcompile.kernels.cores import cached_per_cores, cores
from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.spec import Linear

# Cycles, fitted to products of 1 to 197 rows and 64 to 4096 features on a core with one 512-bit FMA
# per cycle, in the cycles that panels are counted in: of a multiply-add, with all weights, with
# lists and with lanes that pick; of an input that is spread over the lanes of its block; of a block
# of sums and of each of them; until a sum can be used again.
FMA, LIST_FMA, PICK_FMA = 0.57, 0.53, 1.1
SPREAD = 0.5
BLOCK, SUM, LIST_SUM = 20.0, 12.0, 8.0
LATENCY = 2.3
# Of a vector of weights that comes from memory or L3. The multiply-adds of a list do not hide it.
STREAM = 5.0
NARROW = 0.1  # how much longer it takes for each vector under four that lie side by side
UNEVEN = 1.05  # the longest of a few lists, of their mean
WAYS, CONFLICT = 8, 1.05  # more rows may fall into the same few sets of L1 than these have ways


def steps_of(rows: int, most: int) -> list[int]:
    """Rows of each step over `rows`, at most `most` and about equal: all the same but the last."""
    each = -(-rows // -(-rows // most))
    full, rest = divmod(rows, each)
    return [each] * full + [rest] * (rest > 0)


def _candidate(
    linear: Linear,
    config: LanesConfig,
    multiply: Callable[[int, bool], float],
    per_sum: float = SUM,
) -> Candidate:
    """A config with its cycles; `multiply(rows, first)` counts those of the products of a block.

    `first`: whether it waits for its weights; later ones find them in a cache.
    """
    steps = steps_of(linear.rows, config.rows)
    items = [
        multiply(rows, index == 0) + BLOCK + per_sum * rows * config.vectors
        for index, rows in enumerate(steps)
    ]
    panels = -(-linear.out_features // config.width)
    return Candidate(time_of(items, panels, cores()), config)


def _ranked(found: list[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


@cached_per_cores
def dense_configs_of(linear: Linear) -> tuple[Candidate, ...]:
    """Tiles for all weights, ranked."""
    found = []
    for vectors in (4, 2):
        most = (REGISTERS - 1 - vectors) // vectors
        config = LanesConfig(steps_of(linear.rows, most)[0], vectors)
        slower = CONFLICT if config.rows > WAYS else 1.0

        def multiply(
            rows: int, first: bool, vectors: int = vectors, slower: float = slower
        ) -> float:
            each = max(FMA * rows, STREAM * first) * vectors
            return linear.in_features * each * slower

        found.append(_candidate(linear, config, multiply))
    return _ranked(found)


@cached_per_cores
def picked_configs_of(linear: Linear, picking: Picking) -> tuple[Candidate, ...]:
    """Tiles for N:M weights, ranked."""
    found = []
    slots = -(-linear.in_features // (LANES * picking.units)) * picking.units * picking.slots
    for vectors in (4, 2, 1):
        most = min(WAYS, (REGISTERS - 3 - vectors) // (vectors + 1))
        config = LanesConfig(steps_of(linear.rows, most)[0], vectors)
        stream = STREAM * (1 + picking.bits / WORD) * (1 + NARROW * (4 - vectors))

        def multiply(
            rows: int, first: bool, vectors: int = vectors, stream: float = stream
        ) -> float:
            each = max(PICK_FMA * rows, stream * first) * vectors
            return slots * max(each, LATENCY)

        found.append(_candidate(linear, config, multiply))
    return _ranked(found)


@cached_per_cores
def listed_configs_of(linear: Linear, outputs: int, density: float) -> tuple[Candidate, ...]:
    """Tiles for blocks of `outputs` that share a list (1xN), ranked."""
    vectors, parts = max(1, outputs // LANES), max(1, LANES // outputs)
    most = min(2 * WAYS, (REGISTERS - 2 - 2 * vectors) // vectors)
    entries = density * linear.in_features * (UNEVEN if parts > 1 else 1)
    found = []
    for each in sorted({steps_of(linear.rows, few)[0] for few in (WAYS // 2, WAYS, most)}):
        if each > most:
            continue
        slower = CONFLICT if each > WAYS else 1.0

        def multiply(rows: int, first: bool, slower: float = slower) -> float:
            spread = SPREAD * rows * parts * (parts > 1)
            products = max(LIST_FMA * rows * vectors, spread, LATENCY) * slower
            return entries * (products + STREAM * vectors * first)

        found.append(_candidate(linear, LanesConfig(each, vectors), multiply, LIST_SUM))
    return _ranked(found)
