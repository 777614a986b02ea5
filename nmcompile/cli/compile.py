"""The commands that write models: compile, fold, enforce."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmcompile.cli.checks import (
    check_data,
    check_model,
    check_outputs,
    check_pattern,
    check_target,
    check_written,
)
from nmcompile.cli.completion import (
    complete_onnx,
    complete_pattern,
    complete_pattern_or_auto,
)
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import (
    DensityOption,
    ExcludeOption,
    JsonOption,
    KeyOption,
    ModelArgument,
    ShapeOption,
    ShapesOption,
    TargetOption,
    find_model,
    read_fleet,
    shape_sets_of,
    shapes_of,
)
from nmcompile.cli.output import print_facts, print_json, print_table
from nmcompile.cli.printing import say
from nmcompile.cli.quantize import (
    KeepOption,
    MaxLossOption,
    MeanOption,
    SamplesOption,
    StatisticsOption,
    StdOption,
    read_settings,
)
from nmcompile.cli.segments import RestOption, StrictOption, rest_of
from nmcompile.tables import size

if TYPE_CHECKING:
    from nmcompile.frontends import SourceModel
    from nmcompile.passes.enforce_pattern import EnforcedLayer

OnnxArgument = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file.", autocompletion=complete_onnx)
]
PermuteOption = Annotated[
    bool,
    typer.Option("--permute", help="First put channels in an order that keeps more: N:M and 1xN."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the search of --permute.")]
TimeLimitOption = Annotated[
    float, typer.Option(min=0.0, help="Seconds that the search of --permute may take.")
]
OnnxOutput = Annotated[
    Path, typer.Option("--output", "-o", help="The ONNX file to write; missing folders are made.")
]


@guarded
def compile_model(
    model: ModelArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The .nmc file to write; missing folders are made."),
    ],
    target: TargetOption = "avx512",
    pattern: Annotated[
        str,
        typer.Option(
            help="auto: what each layer holds; 2:4, 2:4@flat, 1x16, 1x16@0.5 (half is kept), ...: "
            "verified first; dense: ignore all zeros.",
            autocompletion=complete_pattern_or_auto,
        ),
    ] = "auto",
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Prune layers that break --pattern.")
    ] = False,
    density: DensityOption = None,
    exclude: ExcludeOption = None,
    permute: PermuteOption = False,
    seed: SeedOption = 0,
    time_limit: TimeLimitOption = 60.0,
    shape: ShapesOption = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Measure kernels and tiles, on this machine or on devices: a few minutes.",
        ),
    ] = False,
    tracker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Tune on the devices of this tracker.")
    ] = "",
    key: KeyOption = "",
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a device may take for one layer.")
    ] = 120.0,
    tuning_db: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Measurements to choose by; --tune adds what it lacks."
        ),
    ] = None,
    tuning_cpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Choose by those of the CPU model with this in its name, not of this machine's.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="int8: quantise first, on --data; for avx512_vnni, avx512_bf16 and avx512_amx. "
            "bf16: round to bfloat16; for avx512_bf16 and avx512_amx."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --precision int8: what the model sees in use, as for `nmc quantize`."
        ),
    ] = None,
    samples: SamplesOption = None,
    statistics: StatisticsOption = None,
    mean: MeanOption = "",
    std: StdOption = "",
    keep_float: KeepOption = None,
    max_loss: MaxLossOption = "",
    rest: RestOption = "onnxruntime",
    strict: StrictOption = False,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Generate all code anew, and keep none for next time."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a trained model into one artifact file."""
    check_model(model)
    check_target(target)
    check_pattern(pattern, density)
    check_written(output, model, ".nmc")
    check_outputs(tuning_db if tune else None)
    check_data(data)
    from nmcompile import compiler
    from nmcompile.sparsity import Pruning
    from nmcompile.tuning.request import Tuning

    fleet = read_fleet(tracker, key, timeout)
    settings = read_settings(samples, statistics, mean, std, keep_float, max_loss)
    with working() as progress, _kept(tuning_db if tune else None):
        progress("reading the model")
        result = compiler.compile(
            find_model(model, shape),
            output=output,
            target=target,
            shapes=shape_sets_of(shape),
            pattern=pattern,
            pruning=Pruning(
                "project" if enforce else "verify",
                density=density,
                exclude=exclude or (),
                permute=permute,
                seed=seed,
                time_limit=time_limit,
            ),
            tuning=Tuning(tuning_db, tune, fleet, tuning_cpu),
            precision=precision,
            calibration=data,
            quantization=settings,
            rest=rest_of(rest, strict),
            cache="off" if no_cache else None,
            progress=progress,
        )
    report, nbytes, lost = result.report, output.stat().st_size, result.quantization
    if as_json:
        print_json(
            {
                "output": str(output),
                "digest": result.digest,
                "bytes": nbytes,
                "target": result.target,
                "seconds": dict(result.seconds),
                "tuning": [asdict(layer) for layer in result.tuning],
                "report": report.to_dict(),
                **({"quantization": lost.to_dict()} if lost is not None else {}),
            }
        )
        return
    typer.echo(str(result))


@contextlib.contextmanager
def _kept(database: Path | None) -> Iterator[None]:
    """Say, where the user interrupts tuning, that this has lost nothing."""
    try:
        yield
    except KeyboardInterrupt:
        if database is not None and database.exists():
            say(f"what was measured is in {database}; the same command goes on", err=True)
        raise


@guarded
def fold_model(
    model: OnnxArgument,
    output: OnnxOutput,
    shape: ShapeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fold batch norms and training-only branches of an ONNX model into plain convolutions."""
    check_model(str(model))
    check_written(output, str(model), ".onnx")
    from nmcompile.folding import open_folded

    with working() as progress:
        source, result = open_folded(model, shapes=shapes_of(shape), progress=progress)
        progress("writing the model")
        write_onnx(output, source)
    notes = [f"{note.layer}: {note.text}" for note in result.notes]
    layers = len(source.graph.layers())
    if as_json:
        print_json(
            {"output": str(output), "changed": result.modified, "layers": layers, "notes": notes}
        )
        return
    for note in notes:
        say(f"note: {note}")
    print_facts(
        {
            "output": f"{output} ({size(output.stat().st_size)})",
            "changed": "yes" if result.modified else "no: there was nothing to fold",
            "layers": str(layers),
        }
    )


@guarded
def enforce_model(
    model: OnnxArgument,
    output: OnnxOutput,
    pattern: Annotated[
        str,
        typer.Option(
            help="2:4, 2:4@flat, 1x16@0.5, unstructured@0.1, ...", autocompletion=complete_pattern
        ),
    ],
    density: DensityOption = None,
    exclude: ExcludeOption = None,
    permute: PermuteOption = False,
    seed: SeedOption = 0,
    time_limit: TimeLimitOption = 60.0,
    shape: ShapeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fold an ONNX model, then prune its layers by magnitude until they have a pattern."""
    check_model(str(model))
    check_pattern(pattern, density)
    check_written(output, str(model), ".onnx")
    from nmcompile.compiler import PERMUTING, refuse_trivial
    from nmcompile.folding import open_folded
    from nmcompile.passes.enforce_pattern import EnforcePattern
    from nmcompile.sparsity import Pruning

    with working() as progress:
        pruning = Pruning(
            density=density,
            exclude=exclude or (),
            permute=permute,
            seed=seed,
            time_limit=time_limit,
        )
        step = EnforcePattern(pattern, pruning, partial(progress, PERMUTING))
        source, _ = open_folded(model, shapes=shapes_of(shape), progress=progress)
        progress("projecting the weights")
        result = step.call(source.graph)
        refuse_trivial(result)
        progress("writing the model")
        write_onnx(output, source)
    if as_json:
        rows = [_enforced(row) for row in result.layers]
        document = {"output": str(output), "changed": result.modified, "layers": rows}
        print_json({**document, **({"search_finished": result.finished} if permute else {})})
        return
    _print_enforced(result.layers, permute)
    facts = {"output": f"{output} ({size(output.stat().st_size)})"}
    if not result.finished:
        facts["search"] = f"ended by the time limit of {time_limit:g} s; more time may keep more"
    print_facts(facts)


def _enforced(row: "EnforcedLayer") -> dict[str, Any]:
    """A layer for programs."""
    entry: dict[str, Any] = {
        "name": row.layer,
        "pattern": str(row.pattern),
        "density": row.density,
        "energy_dropped": row.energy_dropped,
        "skipped": row.skipped,
    }
    if row.energy_dropped_in_order is not None:
        entry["energy_kept_before"] = 1.0 - row.energy_dropped_in_order
        entry["energy_kept_after"] = 1.0 - row.energy_dropped
        entry["not_searched"] = row.not_searched
    return entry


def _print_enforced(layers: "Sequence[EnforcedLayer]", permuted: bool) -> None:
    """The layers for people; with `permuted`, the energy kept before and after."""
    rows = []
    for row in layers:
        cells = [row.layer, str(row.pattern), f"{row.density:.3f}"]
        if not permuted:
            cells += [f"{row.energy_dropped:.2%}", row.skipped or ""]
        elif row.energy_dropped_in_order is None:
            cells += ["", "", row.skipped or "it has the pattern already"]
        else:
            kept = (1.0 - row.energy_dropped_in_order, 1.0 - row.energy_dropped)
            cells += [f"{kept[0]:.2%}", f"{kept[1]:.2%}"]
            cells += [f"not searched: {row.not_searched}" if row.not_searched else ""]
        rows.append(cells)
    energy = ("energy kept before", "and after") if permuted else ("energy dropped",)
    columns = ("layer", "pattern", "density", *energy, "left alone because")
    prose = len(columns) - 1
    print_table("", columns, rows, right=range(2, 3 + len(energy)), prose=prose)


def write_onnx(path: Path, source: "SourceModel") -> None:
    """Write the model as one ONNX file, all of it or nothing.

    Raises:
        ModelError: it does not fit one file.
        ArtifactError: it cannot be written.
    """
    from nmcompile.frontends.onnx_export import serialized
    from nmcompile.runtime.files import replace_file

    replace_file(path, [serialized(source.native(), source.title)])
