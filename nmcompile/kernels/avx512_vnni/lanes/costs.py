"""What the model of `tiling` counts: times in those of one product, on one core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Times, one product of a vector being the unit; of one kind of numbers.

    pick: what a vpermb adds to its product.
    latency: until a sum can be added to again.
    load, load_l2: of a load from L1, and of a vector from L2.
    memory, again: of a vector of weights beside the products: once, from beyond L2, and by each
        work item.
    far: of a line of pixels that a group of outputs reads or writes, where L1 does not hold the
        block.
    output: bytes of an output.
    crowded: more that a load takes whose line was evicted since.
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
    memory: float
    again: float
    far: float
    output: float
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
    pick=0.51,
    latency=9.6,
    load=1.13,
    load_l2=0.93,
    memory=7.0,
    again=0.21,
    far=0.83,
    output=1.0,
    crowded=1.5,
    tile=9.5,
    item=44.0,
    block=0.96,
    segment=6.4,
    vector=3.8,
    source=2.1,
    store=3.1,
    store_beyond=5.8,
    gather_row=24.0,
)
"""Fitted to ResNet-50's layers on a Zen 5 core: dense, 2:4, 1:4, 10 %, 1x16 and 1x32."""
