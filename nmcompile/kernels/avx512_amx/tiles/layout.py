"""Where the rows of tiles of activations begin, and how many bytes each step multiplies.

A segment, a run of bytes under an output pixel, is multiplied 64 bytes at a time. Where it is no
multiple of them, the last step ends where the segment does, and the weights of what it has in
common with the step before are zero; a shorter segment is one step of its own depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD


@dataclass(frozen=True)
class Steps:
    """The steps of a segment.

    segment: its bytes.
    depth: bytes of one step, in whole quads.
    count: how many there are.
    """

    segment: int
    depth: int
    count: int

    @classmethod
    def of(cls, segment: int) -> Steps:
        """Of so many bytes."""
        whole = -(-segment // QUAD) * QUAD
        return cls(segment, min(BYTES, whole), -(-segment // BYTES))

    @property
    def starts(self) -> list[int]:
        """Where each step begins."""
        last = max(0, self.segment - BYTES)
        return [min(step * BYTES, last) for step in range(self.count)]
