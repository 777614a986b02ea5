"""A compiled part of a model with its weights, ready to run any number of times at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nmcompile.runtime.crew import inside
from nmcompile.runtime.library import Library, check_outputs
from nmcompile.runtime.specs import TensorSpec

Call = Callable[[Any, Sequence[Any]], Any]
"""Calls something that runs a library, with these arguments, on the threads of a session."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """One library; `inputs` and `outputs` are what its entry function takes and returns.

    idle: entry functions, each of a VM of its own, that no run is in: a VM must not be entered by
        two threads at once.
    """

    path: Path
    library: Library
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: list[Any]
    idle: list[Any] = field(default_factory=list)

    @cached_property
    def addresses(self) -> frozenset[int]:
        """Of the weights: where no output of a caller's own may lie."""
        return frozenset(tensor.data_ptr() for tensor in self.params)

    def run(self, call: Call, arguments: Sequence[Any]) -> list[Any]:
        """The tensors that it returns; an output may alias an input, a weight or another output.

        Raises:
            ArtifactError: they are not what the manifest says.
        """
        entry = self.take()
        result = call(entry, [*arguments, *self.params])
        self.idle.append(entry)  # not after an error, which a VM may not have got over
        tensors = self.library.tensors(result)
        check_outputs(self.path, self.outputs, tensors)
        return tensors

    def take(self) -> Any:
        """An entry function that nobody else is in."""
        try:
            return self.idle.pop()
        except IndexError:
            with inside():
                return self.library.function(self.entry, len(self.inputs), len(self.params))
