"""What the benchmark asks of an engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Outputs = tuple[list[Array], float]
"""The outputs in the model's order, and the seconds of the run by the engine's own clock."""


class Engine(ABC):
    """A loaded model.

    Made from (model in the form of the engine's row, input shapes by name, threads).

    Attributes:
        version: of the engine's package.
        inputs: input names in the model's order.
    """

    version: str
    inputs: Sequence[str]

    @abstractmethod
    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order; they may change with the next run.

        Threads must sleep afterwards, not spin on into the time of the engine measured next.
        """

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """`compute` with a clock around it; engines in another process overrule it."""
        begin = time.perf_counter()
        outputs = self.compute(inputs)
        return outputs, time.perf_counter() - begin

    def close(self) -> None:  # noqa: B027
        """Let go of memory and processes; the engine does not run afterwards."""


def zeros(shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Float32 inputs, for engines that compile themselves in the first run."""
    return {name: np.zeros(tuple(shape), np.float32) for name, shape in shapes.items()}


def summary(error: Exception) -> str:
    """What an exception of an engine says, on one line: the first that says more than where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith(":")] or lines or ["no message"]
    return f"{type(error).__name__}: {said[0]}"
