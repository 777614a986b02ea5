"""What the model of `tiling` counts: times in those of one product, on one core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Times, one product of a vector being the unit; of one kind of numbers.

    pick: what a vpermb adds to its product.
    latency: until a sum can be added to again.
    load, load_l2: of a load from L1, and of a vector from L2.
    crowded: times as long as a load takes whose line was evicted since.
    tile, item: to start a tile, and a work item.
    block, segment: to start a block of source bytes, and a segment.
    vector: to finish and store a vector of sums.
    source, store, store_beyond, gather_row: of gathering 64 kept bytes of a pixel: per vector of
        source bytes, to store them, how much more where L1 does not hold the pixels before and
        after, and per row of pixels.
    """

    pick: float
    latency: float
    load: float
    load_l2: float
    crowded: float
    tile: float
    item: float
    block: float
    segment: float
    vector: float
    source: float
    store: float
    store_beyond: float
    gather_row: float


BYTES_COSTS = Costs(
    pick=1 / 3,
    latency=10.0,  # five cycles of two products on Zen 5; Zen 4 needs four of one
    load=0.5,
    load_l2=1.0,
    crowded=3.3,
    tile=18.0,
    item=60.0,
    block=3.0,
    segment=6.0,
    vector=1.7,
    source=1.0,
    store=2.0,
    store_beyond=4.0,
    gather_row=30.0,
)
"""Fitted to ResNet-50's layers on a Zen 4 core: dense, 2:4, 1:4, 1x16 and 1x32."""
