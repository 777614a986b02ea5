"""From an artifact to what runs it, for each of its shapes: every section is loaded once."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from nmcompile.errors import ArtifactError
from nmcompile.runtime.chain import Chain
from nmcompile.runtime.compiled import Call, Compiled
from nmcompile.runtime.crew import inside, run_here
from nmcompile.runtime.format import Artifact
from nmcompile.runtime.library import Library
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.placement import Placement
from nmcompile.runtime.rest import Rest
from nmcompile.runtime.steps import LIBRARY, Step
from nmcompile.runtime.variants import Variant


def load_forms(
    native: NativeRuntime,
    placement: Placement,
    artifact: Artifact,
    call: Call,
    threads: int,
    gpu: bool,
) -> list[Compiled | Chain]:
    """Load libraries, place and prepare their weights, and open what onnxruntime runs.

    Args:
        native: TVM's runtime.
        placement: where weights lie.
        artifact: what to load.
        call: calls something that runs a library.
        threads: how many cores a run uses.
        gpu: whether libraries run on one.

    Returns:
        What runs each of the manifest's `forms`.

    Raises:
        ArtifactError: a part is none, or not what the manifest says.
        DeviceError: there is no room for it here, or onnxruntime is missing.
    """
    manifest, path = artifact.manifest, artifact.path
    loaded = dict[str, _Loaded | Rest]()
    weights = iter(artifact.params)
    for section, step in manifest.by_section.items():
        if step.kind == LIBRARY:
            own = list(islice(weights, step.params))
            loaded[section] = _Loaded(native, placement, artifact, step, own, call, gpu)
        else:
            made_with = manifest.producer.onnxruntime
            loaded[section] = Rest(path, step, artifact.parts[section], threads, made_with)
    found: list[Compiled | Chain] = []
    for form, plan in zip(manifest.forms, manifest.plans, strict=True):
        parts = [_entered(loaded[step.section], step, form) for step in plan]
        first = parts[0]
        if isinstance(first, Compiled) and not form.steps:
            found.append(first)
        else:
            found.append(Chain(native, path, form, parts))
    return found


def _entered(part: "_Loaded | Rest", step: Step, form: Variant) -> Compiled | Rest:
    return part if isinstance(part, Rest) else part.enter(step, form)


class _Loaded:
    """A library and its weights, prepared, as its entry functions take them."""

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
            self._params = [placement.place(array) for array in weights]
            if step.prepare:
                prepare = self._library.function(step.prepare, 0, len(self._params))
        if step.prepare:
            self._params = self._library.tensors(call(prepare, self._params))

    def enter(self, step: Step, form: Variant) -> Compiled:
        """One of its entry functions, held against what it is said to take and return."""
        inputs, outputs = form.inputs, form.outputs
        if form.steps:
            inputs, outputs = form.specs(step.inputs), form.specs(step.outputs)
        params = self._taken(step)
        with inside():
            entry = self._library.function(step.entry, len(inputs), len(params))
        if not self._gpu:
            run_here(self._native, self._library.check, step.entry, inputs, outputs, params)
        return Compiled(self._path, self._library, step.entry, inputs, outputs, params, [entry])

    def _taken(self, step: Step) -> list[Any]:
        """The weights that a step takes."""
        if step.weights is None:
            return self._params
        if any(place >= len(self._params) for place in step.weights):
            raise ArtifactError(
                f"{self._path}: expected {step.entry!r} to take some of the {len(self._params)} "
                f"weights that its library prepares, found one at position {max(step.weights)}; "
                "compile the model again"
            )
        return [self._params[place] for place in step.weights]
