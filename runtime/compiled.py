"""A compiled part of a model with its weights, ready to run any number of times at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmcompile.errors import ArtifactError
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
    specs = artifact.manifest.specs
    library = _Loaded(native, placement, artifact, step, weights, call, gpu)
    return library.enter(step.entry, specs(step.inputs), specs(step.outputs), library.params)


def load_variants(
    native: NativeRuntime, placement: Placement, artifact: Artifact, call: Call
) -> list[Compiled]:
    """Load the library of a model for several shapes, and place and prepare its weights once.

    Raises:
        ArtifactError, DeviceError: as `load_compiled`.
    """
    (step,) = artifact.manifest.plan
    library = _Loaded(native, placement, artifact, step, artifact.params, call, gpu=False)
    found = []
    for variant in artifact.manifest.variants:
        if any(place >= len(library.params) for place in variant.weights):
            raise ArtifactError(
                f"{artifact.path}: expected {variant.entry!r} to take some of the "
                f"{len(library.params)} weights that its library prepares, found one at position "
                f"{max(variant.weights)}; compile the model again"
            )
        params = [library.params[place] for place in variant.weights]
        found.append(library.enter(variant.entry, variant.inputs, variant.outputs, params))
    return found


class _Loaded:
    """A library and its weights, as its entry functions take them."""

    def __init__(
        self,
        native: NativeRuntime,
        placement: Placement,
        artifact: Artifact,
        step: Step,
        weights: Sequence[Any],
        call: Call,
        gpu: bool,
    ) -> None:
        self._native, self._path, self._gpu = native, artifact.path, gpu
        with inside():
            self._library = Library(native, artifact, gpu, step.section)
            # The tensors keep the mapping of the file alive, the artifact itself is not needed.
            self._library.check_prepared(step.prepare)
            self.params = [placement.place(array) for array in weights]
            if step.prepare:
                prepare = self._library.function(step.prepare, 0, len(self.params))
        if step.prepare:
            self.params = self._library.tensors(call(prepare, self.params))

    def enter(
        self,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        params: list[Any],
    ) -> Compiled:
        """One of its entry functions, held against what it is said to take and return."""
        with inside():
            entry = self._library.function(name, len(inputs), len(params))
        if not self._gpu:
            run_here(self._native, self._library.check, name, inputs, outputs, params)
        return Compiled(self._path, self._library, name, inputs, outputs, params, [entry])
