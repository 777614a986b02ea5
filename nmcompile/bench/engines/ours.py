"""nmcompile itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nmcompile import runtime
from nmcompile.bench.engines.engine import Array, Engine
from nmcompile.version import VERSION


class Nmcompile(Engine):
    """An artifact in a session; `session` is there for profiles."""

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load the artifact `model`; its shapes are its own."""
        self.version = VERSION
        self.session = runtime.load(model, threads=threads)
        self.inputs = [spec.name for spec in self.session.inputs]

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order."""
        return list(self.session.run(inputs).values())

    def close(self) -> None:
        """Close the session."""
        self.session.close()
