"""Other weights for an artifact whose code stays as it is."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile import runtime
from nmcompile.assembly import assemble
from nmcompile.building import build
from nmcompile.compiler import CompileResult, digest_of
from nmcompile.errors import ArtifactError, InputError, ShapeError, TargetError
from nmcompile.explain import explained
from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel
from nmcompile.progress import Progress, Stages, silent
from nmcompile.runtime.files import check_writable
from nmcompile.runtime.format import Artifact, read_artifact
from nmcompile.segments.whole import RESTS, taken
from nmcompile.targets import find_target
from nmcompile.version import VERSION

if TYPE_CHECKING:
    from nmcompile.recorded import RecordedCode


def update(
    artifact: str | os.PathLike[str],
    model: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> CompileResult:
    """Put the weights of a model that was trained further into an artifact; generates no code.

    The result is the file that compiling the model would give. All but the weights has to be as it
    was: the graph, its numbers and constants of up to 1 KiB outside of layers; each layer's shape,
    pattern, and how many weights are not zero where they are kept in lists (1xN, unstructured), and
    how many channels the model can do without, if the artifact's did without some; else all stay,
    as with pattern "dense".

    Args:
        artifact: a compiled model for a CPU, written by this version of nmcompile and TVM.
        model: as in `compile`.
        output: the file to write; None for the artifact's own, which is then replaced whole.
            Programs that have it loaded keep the old one.
        example_inputs: for torch models, as in `compile`; None for what the artifact takes.
        progress: told about every stage.

    Raises:
        ArtifactError: the artifact cannot be read, other versions wrote it, or the output
            cannot be written.
        TargetError: the artifact is for a GPU.
        ModelError: the model cannot be read, or is another one.
        ShapeError: an input or a layer has another shape.
        InputError: there are example inputs, and the artifact is for several shapes.
        PatternError: a layer's weight does not fit what the code expects of its zeros.
    """
    return _update(model, Path(artifact), output, example_inputs, progress)


@explained
def _update(
    model: Any,
    path: Path,
    output: str | os.PathLike[str] | None,
    example_inputs: Any,
    progress: Progress,
) -> CompileResult:
    runtime.configure_environment()
    target_path = path if output is None else Path(output)
    check_writable(target_path)
    stage = Stages(progress)
    stage("reading the artifact")
    old = read_artifact(path, copy=True)
    manifest = old.manifest
    _check_versions(old)
    chosen = find_target(manifest.target.kind)
    if chosen.arch:
        raise TargetError(
            f"{path} is for {chosen.name}; expected an artifact for a CPU: GPU models are "
            "compiled anew"
        )
    from nmcompile.recorded import RecordedCode

    code = RecordedCode(old)
    if manifest.variants and example_inputs is not None:
        raise InputError(
            f"{path} is for {len(manifest.variants)} shapes, found example inputs, which are of "
            "one: leave them out, and its own shapes are taken"
        )
    sources = [_open(model, old, form, code, example_inputs, stage) for form in manifest.forms]
    attempt = partial(
        build, target=chosen, precision=code.precision, dense=False, tuning=None, maker=code,
        stage=stage, recorded=code,
    )  # fmt: skip
    onnxruntime, nobody = RESTS
    rest = onnxruntime if manifest.needs_onnxruntime else nobody
    sources, made, _ = taken(sources, chosen, rest, attempt)
    stage("writing the artifact")
    whole = assemble(sources, chosen, made, digest_of(model))
    digest = runtime.write_artifact(target_path, whole.manifest, whole.library, whole.params)
    stage("")
    return CompileResult(target_path, digest, chosen.name, whole.report, stage.seconds)


def _check_versions(artifact: Artifact) -> None:
    """Weights are packed by this version, and have to be as code of another reads them."""
    import tvm

    producer = artifact.manifest.producer
    found, wanted = (producer.nmcompile, producer.tvm), (VERSION, tvm.__version__)
    if found != wanted:
        raise ArtifactError(
            f"{artifact.path} was written by nmcompile {found[0]} with TVM {found[1]}; expected "
            f"{wanted[0]} with {wanted[1]}, which packs the weights: compile the model anew"
        )


def _open(
    model: Any,
    artifact: Artifact,
    form: runtime.Variant,
    code: RecordedCode,
    example_inputs: Any,
    stage: Stages,
) -> SourceModel:
    """The new model, folded, for one of the shapes of an artifact.

    Raises:
        ShapeError: an input or a layer has another shape.
        ModelError: the model cannot be read.
    """
    source, _ = open_folded(
        model,
        example_inputs,
        shapes=form.shapes if example_inputs is None else None,
        progress=stage,
        smaller=code.smaller,
    )
    wanted = [(spec.name, spec.shape, spec.dtype) for spec in form.inputs]
    if list(source.inputs) != wanted:
        raise ShapeError(
            f"{source.title}: expected the inputs {_spell(wanted)} of {artifact.path}, found "
            f"{_spell(source.inputs)}: compile the model anew"
        )
    code.check_layers(source.graph)
    return source


def _spell(inputs: Any) -> str:
    return ", ".join(f"{name} {dtype}{tuple(shape)}" for name, shape, dtype in inputs)
