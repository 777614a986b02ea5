"""Choice of tile sizes for products with outputs in lanes, by counting cycles.

They compare with those of `panel.tiling`.
"""

from __future__ import annotations

from nmcompile.kernels.avx512.lanes.config import LanesConfig
from nmcompile.kernels.avx512.panel.tiling import REGISTERS, time_of
from nmcompile.kernels.cores import cached_per_cores, cores
from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.spec import Linear

# Cycles of a multiply-add, of a vector of weights that comes from memory or L3, of a block of sums
# and of each of them. Fitted to products of 1 to 197 rows and 64 to 3072 features on a core with
# one 512-bit FMA per cycle, in the cycles that panels are counted in.
FMA, STREAM, BLOCK, SUM = 0.57, 3.5, 20.0, 12.0
WAYS, CONFLICT = 8, 1.05  # more rows may fall into the same few sets of L1 than these have ways


def steps_of(rows: int, most: int) -> list[int]:
    """Rows of each step over `rows`, at most `most` and about equal: all the same but the last."""
    each = -(-rows // -(-rows // most))
    full, rest = divmod(rows, each)
    return [each] * full + [rest] * (rest > 0)


@cached_per_cores
def dense_configs_of(linear: Linear) -> tuple[Candidate, ...]:
    """Tiles for all weights, ranked."""
    found = []
    for vectors in (4, 2):
        most = (REGISTERS - 1 - vectors) // vectors
        config = LanesConfig(steps_of(linear.rows, most)[0], vectors)
        panels = -(-linear.out_features // config.width)
        steps = steps_of(linear.rows, config.rows)
        items = []
        for index, rows in enumerate(steps):
            # The first rows wait for the weights, the others find them in a cache.
            cycles = max(FMA * rows * vectors, STREAM * vectors * (index == 0))
            cycles *= CONFLICT if config.rows > WAYS else 1
            items.append(linear.in_features * cycles + BLOCK + SUM * rows * vectors)
        found.append(Candidate(time_of(items, panels, cores()), config))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))
