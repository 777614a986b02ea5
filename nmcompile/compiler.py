"""The driver: from a trained model to an artifact, step by step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile import runtime
from nmcompile.assembly import assemble
from nmcompile.building import TunedLayer, build
from nmcompile.cache import Cache
from nmcompile.errors import PatternError
from nmcompile.explain import explained
from nmcompile.folding import open_folded, without_zero_channels
from nmcompile.frontends import SourceModel
from nmcompile.model_files import check_model_file
from nmcompile.passes.enforce_pattern import EnforcePattern, EnforceResult
from nmcompile.precision import check_precision, open_in, paying_precision
from nmcompile.progress import Progress, Stages, silent
from nmcompile.reports import InspectionReport, target_notes
from nmcompile.runtime.files import check_writable, sweep_scratch
from nmcompile.segments.whole import check_rest_option, taken
from nmcompile.shape_sets import Shapes, check_sets, sets_of
from nmcompile.sparsity import PROJECT, VERIFY, OneByN, Pattern, Pruning, Unstructured
from nmcompile.tables import size, spell_table
from nmcompile.targets import Target, check_toolchain, find_target
from nmcompile.wording import way

if TYPE_CHECKING:
    from nmcompile.quantization import Quantization, QuantizationReport
    from nmcompile.tuning.request import Tuning

PERMUTING = "searching orders of channels"
"""The stage of `enforce` that a time limit bounds."""


@dataclass(frozen=True)
class CompileResult:
    """A written artifact.

    path, digest: the file and the digest that `nmcompile.runtime.load` can pin.
    target: what it was compiled for; where "cuda" was asked for, the GPU's own.
    report: the layers as they were lowered.
    seconds: time per stage, in order.
    tuning: what measuring gained, per layer whose kernel the tuning database knows.
    quantization: what quantising cost, where it was asked for.

    `print` shows what the command line does.
    """

    path: Path
    digest: str
    target: str
    report: InspectionReport
    seconds: Mapping[str, float]
    tuning: tuple[TunedLayer, ...] = ()
    quantization: QuantizationReport | None = None

    def __str__(self) -> str:
        """The report, what quantising cost and tuning gained, and the file."""
        tables = [] if self.quantization is None else [str(self.quantization)]
        if self.tuning:
            tables.append(spell_tuning(self.tuning, find_target(self.target)))
        file = f" ({size(self.path.stat().st_size)})" if self.path.exists() else ""
        return self.report.spelled(
            {"output": f"{self.path}{file}", "digest": self.digest, "target": self.target},
            tables,
            {"seconds": f"{sum(self.seconds.values()):.1f}"},
        )


def spell_tuning(layers: Sequence[TunedLayer], target: Target) -> str:
    """What measuring gained over the analytical model, for people."""
    where = "times on the GPU" if target.arch else "means of one thread and all cores"
    table = spell_table(
        f"tuning: {where}",
        ("layer", "kernel", "model's choice ms", "measured best ms", "faster by"),
        [
            (
                layer.layer,
                layer.kernel,
                f"{layer.default_ms:.3f}",
                f"{layer.ms:.3f}",
                f"{layer.default_ms / layer.ms:.2f}x",
            )
            for layer in layers
        ],
        right=(2, 3, 4),
    )
    before, after = sum(layer.default_ms for layer in layers), sum(layer.ms for layer in layers)
    return f"{table}\ntuned layers: {before:.2f} ms before, {after:.2f} ms after"


@explained
def compile(
    model: Any,
    *,
    output: str | os.PathLike[str],
    target: str = "avx512",
    example_inputs: Any = None,
    shapes: Shapes | Sequence[Shapes] | None = None,
    pattern: Pattern | str = "auto",
    pruning: Pruning = VERIFY,
    tuning: Tuning | None = None,
    precision: str | None = None,
    calibration: Any = None,
    quantization: Quantization | None = None,
    rest: str = "onnxruntime",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> CompileResult:
    """Compile a trained model into one artifact file.

    Args:
        model: `torch.nn.Module`, `torch.export.ExportedProgram`, `torch.fx.GraphModule`, the path
            of an ONNX file or an `onnx.ModelProto`.
        output: the `.nmc` file to write.
        target: a name of `nmc targets`, or "cuda": the one for this machine's GPU.
        example_inputs: for torch models: the inputs whose shapes are compiled for.
        shapes: input shapes by name, where an ONNX model leaves them open, or for inputs of a
            torch model: of the dtypes of `example_inputs`, float32 without these. A list of such
            mappings makes an artifact for several shapes over the same weights, for a CPU.
        pattern: "auto" takes what every layer holds; "2:4", "1x16", "1x16@0.5", ... is verified
            first; "dense" ignores all zeros, those of whole filters too.
        pruning: what may be done to layers that break `pattern`, and which layers it concerns;
            by default they are verified.
        tuning: measurements to choose kernels by; None for the analytical model alone.
        precision: "int8" quantises the model first, for the targets avx512_vnni and later;
            "bf16" rounds weights and activations of layers to bfloat16, for avx512_bf16 (where
            that is faster than float32) and avx512_amx; None leaves the model as it is.
        calibration: with int8, what the model sees in use, as for `nmcompile.quantize`; for the
            first of several shapes.
        quantization: with int8, what else may be decided.
        rest: who runs the operators that are not ours, on a CPU: "onnxruntime", which the artifact
            then needs, or "none", which refuses them.
        cache: the folder of code that was generated before, "off" for none; None for what
            `NMCOMPILE_CACHE` says, else `~/.cache/nmcompile`. GPU targets use none.
        progress: told about every stage.

    Raises:
        ModelError: the model cannot be read, imported or quantised.
        UnsupportedOperatorError: an operator cannot be compiled, and `rest` is "none", or nothing
            of the model would be gained here.
        PatternError: a layer breaks the pattern, or `pruning` does not go with it.
        TargetError: the target is unknown, has no tool chain here, cannot be tuned, or does not
            compute in `precision`.
        DeviceError: "cuda" on a machine without a GPU; tuning where the target's code cannot run,
            or on devices that are not there, fail or differ; what was measured before is in the
            database.
        ShapeError: an input shape is open, contradictory, or there twice.
        InputError: the tuning database is none, or missing without `measure`; its `cpu` is not one
            of its models; `on` without `measure`, or for a GPU target; calibration data without
            int8, or none with it, or as for `nmcompile.quantize`; `rest` is unknown.
        ArtifactError: the output or the database cannot be written.
    """
    # Before TVM starts its threads: the pool can shrink later, not grow.
    runtime.configure_environment()
    chosen = find_target(target)
    check_toolchain(chosen)
    check_rest_option(rest)
    sets = sets_of(shapes)
    check_sets(sets, chosen)
    check_precision(precision, chosen, calibration, quantization, pruning)
    check_writable(Path(output))
    if isinstance(model, str | os.PathLike):
        check_model_file(model)
    asked = str(pattern).strip().lower()
    step = EnforcePattern(asked, pruning) if asked not in ("auto", "dense") else None
    if step is None and pruning != VERIFY:
        named = way("--pattern 2:4", "pattern='2:4'")
        raise PatternError(
            f"{way('--enforce, --density, --exclude and --permute', 'pruning')}: this needs to "
            f"know the pattern; found {asked!r}: name one, as {named}"
        )
    sweep_scratch()
    from nmcompile.kernels.cores import assuming_cores
    from nmcompile.kernels.objects import Objects
    from nmcompile.passes.lowering.library import Linker
    from nmcompile.tuning.setup import open_tuning

    opened = open_tuning(chosen, tuning)
    elsewhere = tuning is not None and (tuning.on is not None or tuning.cpu is not None)
    precision, kept = paying_precision(precision, chosen, elsewhere)
    stage = Stages(progress)
    projects = pruning.mode == "project"
    sources, notes = list[SourceModel](), [*kept]
    models, lost = open_in(
        precision,
        model,
        example_inputs,
        sets=sets,
        calibration=calibration,
        quantization=quantization,
        progress=stage,
        smaller=asked == "auto" or projects,
    )
    for source, folded in models:
        notes += [f"{note.layer}: {note.text}" for note in folded.notes]
        if step is not None:
            stage(PERMUTING if pruning.permute else "checking the pattern")
            step.on_step = partial(stage, PERMUTING)
            notes += _enforce(step, source, len(sets) > 1)
            if not projects:  # the model as it is was held against the pattern
                source, removed = without_zero_channels(source)
                notes += [f"{note.layer}: {note.text}" for note in removed]
        sources.append(source)
    with assuming_cores(opened.cores if opened is not None else None):
        attempt = partial(
            build, target=chosen, precision=precision, dense=asked == "dense", tuning=opened,
            maker=Linker(Objects(Cache(cache))), stage=stage,
        )  # fmt: skip
        sources, made, why = taken(sources, chosen, rest, attempt)
    stage("writing the artifact")
    whole = assemble(sources, chosen, made, digest_of(model))
    digest = runtime.write_artifact(output, whole.manifest, whole.library, whole.params)
    stage("")
    notes += [*filter(None, [why]), *whole.report.notes, *target_notes(sources[0], chosen)]
    report = replace(whole.report, notes=tuple(dict.fromkeys(notes)))
    seconds = stage.seconds
    return CompileResult(Path(output), digest, chosen.name, report, seconds, whole.tuning, lost)


def _enforce(step: EnforcePattern, source: SourceModel, one_of_several: bool) -> list[str]:
    """Prune, or check, one model; returns what users should know of it.

    Raises:
        PatternError: as `EnforcePattern`; or a search that time has ended would make other weights
            for each shape.
    """
    done = step.call(source.graph)
    refuse_trivial(done)
    pruning = step.pruning
    notes = [f"{note.layer}: {note.text}" for note in done.notes if pruning.mode == "project"]
    if not done.finished and one_of_several:
        raise PatternError(
            f"{PERMUTING} ended by the time limit of {pruning.time_limit:g} s, so that the model "
            "would not have the same weights for each of its shapes; expected a search that ends "
            f"by itself: allow more with {way('--time-limit', 'Pruning(time_limit=...)')}"
        )
    if not done.finished:
        notes.append(f"{PERMUTING} ended by the time limit of {pruning.time_limit:g} s")
    return notes


@explained
def fold(
    model: Any,
    example_inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """Fold the training-only structure; returns a model that runs in its framework.

    Returns:
        A `torch.fx.GraphModule` for torch models, an `onnx.ModelProto` for ONNX ones.

    Raises:
        ModelError: the model cannot be read.
    """
    source, _ = open_folded(model, example_inputs, shapes=shapes)
    return source.native()


@explained
def enforce(
    model: Any,
    pattern: Pattern | str,
    *,
    pruning: Pruning = PROJECT,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = silent,
    report: Callable[[EnforceResult], None] | None = None,
) -> Any:
    """Fold the model and project every eligible layer onto a pattern.

    Args:
        model: as in `compile`.
        pattern: what to project onto, as "2:4" or "1x16@0.5".
        pruning: which layers, and how.
        example_inputs: as in `compile`.
        shapes: as in `compile`.
        progress: told about every stage.
        report: told what happened to each layer: the energy that projection dropped, and what it
            would have dropped in the order given.

    Returns:
        As `fold`.

    Raises:
        PatternError: the pattern is malformed, needs a density, or cannot be permuted for.
        ModelError: the model cannot be read.
    """
    step = EnforcePattern(pattern, pruning, partial(progress, PERMUTING))
    projects = pruning.mode == "project"
    source, _ = open_folded(
        model, example_inputs, shapes=shapes, progress=progress, smaller=projects
    )
    progress("projecting the weights")
    result = step.call(source.graph)
    refuse_trivial(result)
    if report is not None:
        report(result)
    return source.native()


def refuse_trivial(result: EnforceResult) -> None:
    """Refuse 1xN and unstructured where they hold only because nothing is pruned.

    Raises:
        PatternError: no layer has a zero.
    """
    rows = [row for row in result.layers if row.skipped is None]
    if not all(isinstance(row.pattern, OneByN | Unstructured) for row in rows):
        return
    if rows and all(row.density == 1.0 for row in rows):
        raise PatternError(
            f"pattern {rows[0].pattern}: expected layers with zeros, found none in "
            f"{len(rows)} layers, {rows[0].layer} the first; say how much to prune with "
            f"{way('--enforce --density 0.5', 'Pruning(density=0.5)')}, or compile the model as it "
            f"is with {way('--pattern auto', repr('auto'))}"
        )


def digest_of(model: Any) -> str:
    """The sha256 of a model file; "" for models in memory."""
    if not isinstance(model, str | os.PathLike):
        return ""
    with open(model, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
