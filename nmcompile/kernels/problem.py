"""A layer as the kernels see it: what to compute, its weights, and the pattern they hold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.integers import Dequantise, Gate, Integers, Quantise, Sum, Table
from nmcompile.kernels.recurrence import Recurrent
from nmcompile.kernels.spec import (
    Attention,
    Conv2d,
    Elementwise,
    Epilogue,
    GlobalAverage,
    GroupNorm,
    LayerNorm,
    Linear,
    Pool2d,
    Positions,
    Product,
    Resample,
    Softmax,
)
from nmcompile.sparsity import Detection

Array = npt.NDArray[np.generic]
Spec = (
    Conv2d | Linear | Pool2d | GlobalAverage | Quantise | Dequantise | Table | Sum | Gate
    | Attention | Product | LayerNorm | GroupNorm | Softmax | Elementwise | Recurrent | Resample
    | Positions
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Problem:
    """One operator to lower.

    weight: OIHW (out, in / groups, kh, kw) for convolutions, (out, in) for linear, (rows, hidden)
        for recurrent; float32, or int8 where there are `integers`. A table's 256 values, uint8.
        Else None.
    bias: (out,), present where `epilogue.bias` is set; None where there are `integers`. Of a GRU
        (directions * hidden,).
    detection: the pattern that the weight holds.
    integers: of int8 problems, whose activations are u8: what becomes of the sums. `epilogue` says
        nothing there.
    """

    spec: Spec
    epilogue: Epilogue = field(default_factory=Epilogue)
    weight: npt.NDArray[Any] | None = None
    bias: npt.NDArray[np.float32] | None = None
    detection: Detection | None = None
    dtype: str = "float32"
    integers: Integers | None = None

    @property
    def scattered(self) -> tuple[int, ...] | None:
        """The order of output channels in which a 1xN pattern holds; None where they lie in it."""
        return None if self.detection is None else self.detection.order

    def in_place(self) -> Problem:
        """The same, written over the residual."""
        if self.integers is not None:
            return replace(self, integers=replace(self.integers, in_place=True))
        return replace(self, epilogue=replace(self.epilogue, in_place=True))

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a float32 kernel with weights reads and writes: NCHW, or rows of features."""
        assert isinstance(self.spec, Conv2d | Linear)
        return self.spec.shapes

    @property
    def bytes_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What an integer kernel with weights reads and writes: NHWC, or rows of features."""
        if isinstance(self.spec, Linear):
            return self.shapes
        conv = self.conv
        return (
            (conv.batch, conv.in_height, conv.in_width, conv.in_channels),
            (conv.batch, conv.out_height, conv.out_width, conv.out_channels),
        )

    @property
    def conv(self) -> Conv2d:
        """The geometry of a convolution."""
        assert isinstance(self.spec, Conv2d)
        return self.spec

    @property
    def as_conv(self) -> Conv2d:
        """The convolution that it is: a matrix product has a 1x1 one over its rows."""
        return self.spec.as_conv if isinstance(self.spec, Linear) else self.conv

    @property
    def oihw(self) -> npt.NDArray[Any]:
        """The weight of a convolution, or of a matrix product as one of 1x1."""
        weight = self.weight
        assert weight is not None
        return weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight


@dataclass(frozen=True)
class Candidate:
    """Tile sizes that a kernel can run a problem with, and the cycles that a model counts for them.

    Cycles compare within a problem, over the kernels of a target too. On a CPU: of a core with two
    FMA pipes and two load ports, as the geometric mean of one thread and all cores; on a GPU: of
    its clock.
    """

    cycles: float
    config: Any  # the kernel's own dataclass: frozen, and equal only when they are the same


@dataclass(frozen=True)
class Prepare:
    """What makes the float32 array that a kernel reads of those in the artifact, once per load.

    `emit(name, *args)` writes the TIR function (*sources, prepared). `sources` are names of the
    artifact's arrays, `size` counts the floats of `prepared`.
    """

    name: str
    emit: Callable[..., Any]
    args: tuple[Hashable, ...]
    sources: tuple[str, ...]
    size: int

    def emit_func(self) -> Any:
        """The TIR function, emitted anew."""
        return self.emit(self.name, *self.args)

    @property
    def made_by(self) -> str:
        """Equal for two, of whatever models and programs, exactly when their functions are."""
        return _spell(self.emit, (self.name, *self.args))


@dataclass(frozen=True, eq=False)
class Lowered:
    """A TIR function and the constant arrays it takes between the input and the output.

    Arguments: x and the other values of the model that it reads, then `operands` in order, then the
    residual if the epilogue has one, then the scratch if there is one, then out unless that takes
    the residual's memory.
    `emit(*args)` writes the function: equal `made_by` means interchangeable functions, so that a
    model needs to emit each only once. `arrays` are what the artifact keeps; `prepare` says which
    operands are made of them, under the name of their first source. `scratch` is the shape of a
    float32 array that the function overwrites and nobody reads afterwards; () for none.
    """

    emit: Callable[..., Any]
    args: tuple[Hashable, ...]
    arrays: Mapping[str, Array]
    prepare: Mapping[str, Prepare] = field(default_factory=dict)
    scratch: tuple[int, ...] = ()

    @property
    def operands(self) -> tuple[str, ...]:
        """The arrays in order, without those that only go into prepared ones."""
        used = {name for prepare in self.prepare.values() for name in prepare.sources}
        return tuple(name for name in self.arrays if name in self.prepare or name not in used)

    def emit_func(self) -> Any:
        """The TIR function, emitted anew."""
        return self.emit(*self.args)

    @property
    def made_by(self) -> str:
        """Equal for two, of whatever models and programs, exactly when their functions are."""
        return _spell(self.emit, self.args)


def _spell(emit: Callable[..., Any], args: tuple[Hashable, ...]) -> str:
    """A call whose arguments are numbers, strings, and dataclasses and tuples of such."""
    return f"{emit.__module__}.{emit.__qualname__}{args!r}"


def arrays_of(packed: Any) -> dict[str, Array]:
    """The arrays among the fields of a dataclass, in their order, by argument name."""
    named = {field.name: getattr(packed, field.name) for field in fields(packed)}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def with_bias(values: Array, bias: npt.NDArray[np.float32] | None) -> dict[str, Array]:
    """The constants of a kernel without a packing of its own, as `Lowered.arrays`."""
    return {"values": values} if bias is None else {"values": values, "bias": bias}
