"""Tensors and calls as an artifact describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmcompile.runtime.strict_json import OPEN

# Bytes per element of every dtype that the tensor tables may name.
DTYPES: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}

# And of those that only onnxruntime computes with: inputs and outputs of a model with steps.
WIDE: Mapping[str, int] = {"float64": 8, "uint32": 4, "uint64": 8}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output of the model, or of a tensor between steps.

    A dimension of an output is -1 where its size depends on the values of the inputs.

    any_shape: of an output, that even the number of its dimensions does; `shape` is then empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    any_shape: bool = False

    def __str__(self) -> str:
        """Return for example ``x float32 1x3x224x224``; ? for what depends on values."""
        extents = "x".join("?" if extent < 0 else str(extent) for extent in self.shape)
        shape = "of any shape" if self.any_shape else extents or "scalar"
        return f"{self.name} {self.dtype} {shape}"

    @property
    def is_open(self) -> bool:
        """Whether the shape depends on values."""
        return self.any_shape or OPEN in self.shape

    @property
    def is_wide(self) -> bool:
        """Whether only onnxruntime computes with the dtype."""
        return self.dtype in WIDE

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is as described."""
        return self.any_shape or (
            len(shape) == len(self.shape)
            and all(
                wanted in (found, OPEN) for found, wanted in zip(shape, self.shape, strict=True)
            )
        )


@dataclass(frozen=True)
class ParamSpec:
    """One weight: `offset` in bytes from the start of the weights section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Call:
    """One kernel call of the entry function: the function called and the layer it belongs to."""

    symbol: str
    layer: str


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype called `name` in `DTYPES`; imports ml_dtypes only for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
