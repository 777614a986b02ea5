"""What becomes of the sums of tiles: requantised and stored, while the next ones are multiplied.

The tile unit works beside the vector units as long as both have instructions in sight. So sums are
stored to memory, and finished a few pixels at a time between the products of the tiles after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, lanes
from nmcompile.kernels.avx512_amx.instructions import ROWS, Tiles, hold_whole
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.avx512_vnni.lanes.finish import FOUR, Finisher

TILE = ROWS * LANES  # sums


class Pending:
    """Sums that are multiplied but not finished, and where they go; of one work item.

    Two sets of sums: what is multiplied next is stored before these are finished.
    """

    def __init__(self, across: int, vectors: int, dtype: str) -> None:
        self.size = across * vectors * TILE
        # Not on the stack, where rows would not be aligned.
        self.sums = hold_whole(T.alloc_buffer((2 * self.size,), dtype, align=BYTES))
        self.firsts = T.alloc_buffer((across,), "int32", scope="local")
        self.skips = T.alloc_buffer((across,), "int32", scope="local")
        self.channel, self.done, self.slot = (
            T.alloc_buffer((1,), "int32", scope="local") for _ in range(3)
        )
        T.buffer_store(self.done, T.int32(across * ROWS), [0])
        T.buffer_store(self.slot, T.int32(0), [0])


@dataclass(frozen=True)
class Together:
    """Tiles that are multiplied together: of pixels, pixels of each, vectors of outputs."""

    across: int
    pixels: int
    vectors: int


class Finishing:
    """Emits what finishes pending sums.

    Args:
        outputs: output channels of their group that are real.
        ragged: whether pixels may have to be skipped.
    """

    def __init__(
        self,
        finish: Finisher,
        unit: Tiles,
        pending: Pending,
        shape: Together,
        outputs: int,
        ragged: bool,
    ) -> None:
        self._finish, self._unit, self._pending = finish, unit, pending
        self._shape, self._outputs = shape, outputs
        several = max(1, 2 * FOUR // shape.vectors)
        self._together = 1 if finish.long else min(several, shape.pixels)
        self._ragged = ragged or shape.pixels % self._together != 0
        self._per_tile = -(-shape.pixels // self._together)
        self._count = self._per_tile * shape.across

    def begin(self, channel: Expr, firsts: Sequence[Expr], skips: Sequence[Expr]) -> None:
        """Make the sums in the tiles the pending ones.

        Args:
            channel: the first output channel.
            firsts: of each tile the first output pixel.
            skips: of each tile the pixels that are not to be written.
        """
        pending = self._pending
        slot = T.bind(T.int32(pending.size) - pending.slot[0])
        T.buffer_store(pending.slot, slot, [0])
        for tile in range(self._shape.across * self._shape.vectors):
            self._unit.store(tile, pending.sums, slot + tile * TILE)
        for j, (first, skip) in enumerate(zip(firsts, skips, strict=True)):
            T.buffer_store(pending.firsts, first, [j])
            T.buffer_store(pending.skips, skip, [j])
        T.buffer_store(pending.channel, channel, [0])
        T.buffer_store(pending.done, T.int32(0), [0])

    def some(self, steps: int) -> None:
        """Finish as many as are due in one of so many steps."""
        self._run(T.min(T.int32(-(-self._count // (steps + 1))), self._left()))

    def rest(self) -> None:
        """Finish what is left; there is nothing pending then."""
        self._run(self._left())
        T.buffer_store(self._pending.done, T.int32(self._shape.across * ROWS), [0])

    def _left(self) -> Expr:
        return T.max(T.int32(self._count) - self._pending.done[0], T.int32(0))

    def _run(self, count: Expr) -> None:
        pending = self._pending
        count = T.bind(count)
        done = T.bind(pending.done[0])
        with T.serial(0, count) as nth:
            self._one(T.bind(done + nth))
        T.buffer_store(pending.done, done + count, [0])

    def _one(self, number: Expr) -> None:
        """A few pixels of a tile."""
        pending, together, pixels = self._pending, self._together, self._shape.pixels
        tile = T.bind(number // self._per_tile)
        wanted = T.bind(number % self._per_tile * together)
        if not self._ragged:
            self._rows(tile, wanted, together)
            return
        begin = T.bind(T.min(wanted, pixels - together))
        keep = T.bind(T.max(wanted, pending.skips[tile]))
        with T.If(keep <= begin):
            with T.Then():
                self._rows(tile, begin, together)
            with T.Else():
                with T.serial(0, T.max(begin + together - keep, 0)) as row:
                    self._rows(tile, T.bind(keep + row), 1)

    def _rows(self, tile: Expr, begin: Expr, count: int) -> None:
        """So many pixels of a tile."""
        pending, finish, vectors = self._pending, self._finish, self._shape.vectors
        first = T.bind(pending.channel[0])
        columns = finish.columns(first, vectors)
        place = T.bind(pending.slot[0] + tile * (vectors * TILE) + begin * LANES)

        def sums(t: int, u: int) -> Expr:
            return pending.sums[lanes(place + (u * TILE + t * LANES))]

        at = T.bind((pending.firsts[tile] + begin) * finish.channels + first)
        finish.pixels(count, sums, columns, at, self._outputs)
