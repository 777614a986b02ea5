"""What operators do to the elements of tensors, as far as passes ask."""

from dataclasses import dataclass
from typing import Literal

FlowKind = Literal[
    "opaque", "pointwise", "parts", "along", "symmetric", "reduce", "elementwise", "concat",
    "reshape", "transpose", "slice", "broadcast", "lookup", "product", "attention",
]  # fmt: skip


@dataclass(frozen=True)
class Flow:
    """What an operator does to the elements of what it reads. The default claims nothing.

    kind: how the output comes of the inputs.
        opaque: in any way.
        pointwise: each element of one of the first input, all alike but for `Op.parameters`; other
            inputs are constants.
        parts: a list of parts of the input, which slices of the input pick.
        along: what is along `axes` of the first input is mixed, in the same way for each place of
            the other axes; the extents of `axes` may change.
        symmetric: as pointwise, but each element also depends on all along `axes`, in whatever
            order these are; other inputs are of the shape of `axes`, to scale and to shift.
        reduce: what is along `axes` becomes one number, whatever its order.
        elementwise: numpy broadcasting over all inputs.
        concat: the inputs follow each other along the axis.
        reshape: the elements of the first input in the same order, in another shape.
        transpose: axis i is axis axes[i] of the first input.
        slice: each output is a part of the first input along the axis.
        broadcast: the first input, repeated along axes of one place.
        lookup: rows of the first input, at places that the second says.
        product: of matrices, numpy's matmul of the first two inputs.
        attention: softmax(q k^T) v of the first three inputs; a fourth is added or masks.
    axes: of the first input, not negative.
    pieces: of a slice: where each output begins and ends; the axis is gone where the output has
        one fewer.
    """

    kind: FlowKind = "opaque"
    axes: tuple[int, ...] = ()
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def by_channel(self) -> bool:
        """Whether a place of axis 1 depends on that of the first input alone, the same for all."""
        if self.kind in ("along", "reduce"):
            return min(self.axes, default=2) > 1
        return self.kind == "pointwise"


OPAQUE = Flow()

Uniform = Literal["unknown", "zero", "kept", "pointwise"]
"""What an operator by channel makes of a channel that holds one number everywhere. The default
claims nothing.

zero: zeros of zeros. kept: that number everywhere. pointwise: every element of the output depends
on the one in its place alone, so that `Graph.evaluate` tells.
"""
