"""Inputs for models whose user has none at hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmcompile.runtime.specs import TensorSpec, numpy_dtype


def random_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Normal floats, and integers of 0 and 1; a seed gives the same in every run."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for spec in specs:
        drawn: NDArray[Any]
        if "float" in spec.dtype:
            drawn = generator.standard_normal(spec.shape, np.float32)
        else:
            drawn = generator.integers(0, 2, spec.shape)
        arrays[spec.name] = np.asarray(drawn, numpy_dtype(spec.dtype))
    return arrays
