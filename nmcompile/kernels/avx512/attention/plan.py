"""How an attention is divided: blocks of keys, tiles of them, rows of queries; and where it packs.

Keys and values of one head are copied once into memory without gaps, which every block of queries
then reads:

    keys:   for each vector of 16 keys: [feature][16], zeros behind the last key
    values: [key][features rounded up to whole vectors], zeros behind the last
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.spec import Attention

ROWS = 6  # queries whose sums are in registers together
WIDTH = 4  # vectors of keys, or of features of a value, beside them: 6 x 4 fill the registers
TILES = 8  # of rows, in a block of queries
BLOCK = 8  # vectors of keys in a block, whose scores stay in L1


def vectors(count: int) -> int:
    """Vectors that so many floats take."""
    return -(-count // LANES)


def shared_out(count: int, most: int) -> tuple[int, ...]:
    """Parts of about the same size, none larger than `most`."""
    parts = -(-count // most)
    return tuple(count // parts + (index < count % parts) for index in range(parts))


@dataclass(frozen=True)
class Tile:
    """Vectors of keys that are multiplied together: `first` counts from the block's first one."""

    first: int
    width: int


@dataclass(frozen=True)
class Plan:
    """The division of one attention."""

    spec: Attention

    @property
    def rows(self) -> int:
        """Queries in a tile of rows."""
        return min(ROWS, self.spec.queries)

    @property
    def row_tiles(self) -> int:
        """Of one head; the last one begins where it ends with the last query."""
        return -(-self.spec.queries // self.rows)

    @property
    def query_blocks(self) -> int:
        """Of one head."""
        return -(-self.row_tiles // TILES)

    @property
    def block_tiles(self) -> int:
        """Tiles of rows in a block of queries; the last block may have fewer."""
        return -(-self.row_tiles // self.query_blocks)

    @cached_property
    def block(self) -> int:
        """Vectors of keys in all blocks but the last."""
        return shared_out(vectors(self.spec.keys), BLOCK)[0]

    @property
    def full_blocks(self) -> int:
        """Blocks of keys of this many vectors, all of whose keys there are."""
        return self.spec.keys // (self.block * LANES)

    @property
    def last_keys(self) -> int:
        """Keys of the last block where that is not a full one; 0 where it is."""
        return self.spec.keys % (self.block * LANES)

    def tiles(self, keys: int) -> Iterator[Tile]:
        """The tiles of a block of so many keys."""
        first = 0
        for width in shared_out(vectors(keys), WIDTH):
            yield Tile(first, width)
            first += width

    @property
    def value_vectors(self) -> int:
        """Vectors that a value takes."""
        return vectors(self.spec.value_size)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Vectors of a value whose sums are in registers together."""
        return shared_out(self.value_vectors, WIDTH)

    @property
    def packed_keys(self) -> int:
        """Floats of the packed keys of a head."""
        return vectors(self.spec.keys) * LANES * self.spec.size

    @property
    def packed_values(self) -> int:
        """Floats of the packed values of a head."""
        return self.spec.keys * self.value_vectors * LANES

    @property
    def packed(self) -> int:
        """Floats of what is packed for a head."""
        return self.packed_keys + self.packed_values
