"""A compiled part of a model with its weights, ready to run any number of times at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmcompile.runtime.crew import inside, run_here
from nmcompile.runtime.format import Artifact
from nmcompile.runtime.library import Library, check_outputs
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.placement import Placement
from nmcompile.runtime.specs import TensorSpec
from nmcompile.runtime.steps import Step

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


def load_compiled(
    native: NativeRuntime,
    placement: Placement,
    artifact: Artifact,
    step: Step,
    weights: Sequence[Any],
    call: Call,
    gpu: bool = False,
) -> Compiled:
    """Load a library, and place and prepare its weights.

    Raises:
        ArtifactError: it is no library, or not what the manifest says.
        DeviceError: there is no room for it here.
    """
    manifest = artifact.manifest
    inputs, outputs = manifest.specs(step.inputs), manifest.specs(step.outputs)
    with inside():
        library = Library(native, artifact, gpu, step.section)
        # The tensors keep the mapping of the file alive, the artifact itself is not needed.
        library.check_prepared(step.prepare)
        params = [placement.place(array) for array in weights]
        if step.prepare:
            prepare = library.function(step.prepare, 0, len(params))
    if step.prepare:
        params = library.tensors(call(prepare, params))
    with inside():
        entry = library.function(step.entry, len(inputs), len(params))
    if not gpu:
        run_here(native, library.check, step.entry, inputs, outputs, params)
    return Compiled(artifact.path, library, step.entry, inputs, outputs, params, [entry])
