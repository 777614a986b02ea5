"""The commands that only look: inspect, targets."""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from nmcompile.cli.checks import check_model, check_outputs, check_pattern
from nmcompile.cli.completion import complete_model, complete_pattern_or_auto
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.look import HtmlOption, LayerOption, Look, ProfileOption
from nmcompile.cli.options import (
    JsonOption,
    Shape,
    ShapeOption,
    TargetOption,
    find_model,
    shapes_of,
)
from nmcompile.cli.output import print_facts, print_json, print_table
from nmcompile.cli.printing import say
from nmcompile.cli.segments import RestOption, StrictOption, rest_of
from nmcompile.errors import DeviceError
from nmcompile.layer_facts import known_facts, plain_name
from nmcompile.model_files import is_artifact
from nmcompile.tables import size, spell_layers, spell_segments
from nmcompile.targets import CUDA, TARGETS, find_target


@guarded
def inspect_any(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_NMC",
            help="An ONNX file, package.module:factory for a torch model, or a compiled model.",
            autocompletion=complete_model,
        ),
    ],
    pattern: Annotated[
        str,
        typer.Option(
            help="Count how often each layer breaks this pattern.",
            autocompletion=complete_pattern_or_auto,
        ),
    ] = "auto",
    target: TargetOption = "avx512",
    shape: ShapeOption = None,
    spatial: Annotated[
        bool, typer.Option("--spatial", help="Show densities per kernel position instead.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="With --spatial: draw them, too.")
    ] = None,
    html: HtmlOption = None,
    profile: ProfileOption = None,
    layer: LayerOption = None,
    rest: RestOption = "onnxruntime",
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of a model: their pattern, and whether and why not they run sparse."""
    shapes = shape or []
    if plot is not None and not spatial:
        raise typer.BadParameter("expected --spatial with it", param_hint="--plot")
    look = Look(html, profile, layer or [], as_json)
    look.check(pattern, spatial)
    if is_artifact(Path(model)):
        asked = {"--pattern": pattern != "auto", "--shape": bool(shapes), "--spatial": spatial,
                 "--target": target != "avx512", "--rest": rest != "onnxruntime",
                 "--strict": strict}  # fmt: skip
        if any(asked.values()):
            options = ", ".join(name for name, given in asked.items() if given)
            raise typer.BadParameter(
                f"{model} is compiled already: expected the model that it was made from",
                param_hint=options,
            )
        if look.wanted:
            look.at_artifact(Path(model))
            return
        show_artifact(Path(model), as_json)
        return
    check_model(model)
    find_target(target)
    check_pattern(pattern)
    check_outputs(plot)
    if look.wanted:
        look.at_model(model, target, shapes, rest_of(rest, strict))
    elif spatial:
        from nmcompile.cli.spatial import show_spatial
        from nmcompile.spatial import spatial_report

        with working() as progress:
            layers = spatial_report(
                find_model(model, shapes),
                shapes=shapes_of(shapes),
                pattern=pattern,
                progress=progress,
            )
        show_spatial(layers, plot, as_json)
    else:
        show_model(model, pattern, target, shapes, rest_of(rest, strict), as_json)


def show_model(
    model: str, pattern: str, target: str, shapes: list[Shape], rest: str, as_json: bool
) -> None:
    """Print the report of a model."""
    from nmcompile.inspection import inspect

    with working() as progress:
        progress("reading the model")
        report = inspect(
            find_model(model, shapes),
            shapes=shapes_of(shapes),
            pattern=pattern,
            target=target,
            rest=rest,
            progress=progress,
        )
    if as_json:
        print_json({"kind": "model"} | report.to_dict())
        return
    typer.echo(str(report))


def show_artifact(path: Path, as_json: bool) -> None:
    """Print what an artifact says about itself, on any machine: its library is not loaded."""
    from nmcompile.runtime import read_artifact
    from nmcompile.runtime.manifest import to_fields
    from nmcompile.runtime.steps import LIBRARY, ONNX, WEIGHTS
    from nmcompile.runtime.variants import spell_all, spell_specs

    artifact = read_artifact(path)
    manifest = artifact.manifest
    nbytes = path.stat().st_size
    features, kind = manifest.target.cpu_features, manifest.target.kind
    missing, gpu = missing_features(features), missing_gpu(kind)
    made_with = manifest.producer.onnxruntime
    lengths = {section.name: section.length for section in manifest.sections}
    kinds = Counter[str]()
    for section, step in manifest.by_section.items():
        kinds[step.kind] += lengths[section]
    parts = f"library {size(kinds[LIBRARY])}"
    if manifest.needs_onnxruntime:
        parts += f"; for onnxruntime {size(kinds[ONNX])}"
    # A call of a layer names the layer; one of TVM's own lowering has only its symbol.
    others = Counter(
        plain_name(call.symbol) for call in manifest.calls if call.symbol == call.layer
    )
    forms = manifest.forms
    counts = spell_all(str(len(form.calls)) for form in forms)
    if as_json:
        fields = to_fields(manifest)
        print_json(
            {
                "kind": "artifact",
                "path": str(path),
                "bytes": nbytes,
                "digest": artifact.digest,
                "missing_cpu_features": missing,
                "missing_gpu": gpu,
                "manifest": fields,
            }
        )
        return
    if manifest.layers:
        typer.echo(spell_layers(manifest.layers) + "\n")
    if manifest.needs_onnxruntime:
        typer.echo(spell_segments([step.about for step in manifest.plan]) + "\n")
    layers = [known_facts(layer) for layer in manifest.layers]
    dense = sum(4 * math.prod(layer.get("shape", ())) for layer in layers)
    print_facts(
        {
            "artifact": f"{path} ({size(nbytes)}: weights {size(lengths[WEIGHTS])}, as dense "
            f"float32 {size(dense)}; {parts})",
            "digest": artifact.digest,
            "model": f"{manifest.model.name} (sha256 {manifest.model.digest or 'unknown'})",
            "target": f"{kind} ({', '.join(features)})" if features else kind,
            f"this {'GPU' if is_gpu(kind) else 'CPU'}": verdict(missing, gpu),
            "inputs": spell_all(spell_specs(form.inputs) for form in forms),
            "outputs": spell_all(spell_specs(form.outputs) for form in forms),
            **({"other batches": "run in parts of these"} if manifest.batched else {}),
            "calls": f"{counts} kernels per run, {others.total()} of them in TVM's "
            "own lowering" + (f": {', '.join(others)}" if others else ""),
            "producer": f"nmcompile {manifest.producer.nmcompile}, TVM {manifest.producer.tvm}"
            + (f", onnxruntime {made_with}" if made_with else ""),
        }
    )


def missing_features(features: tuple[str, ...]) -> list[str]:
    """Which CPU features this machine lacks; all of them where it cannot tell."""
    from nmcompile.runtime import cpu

    try:
        _, present = cpu.host()
    except DeviceError:
        return list(features)
    return [feature for feature in features if feature not in present]


def is_gpu(kind: str) -> bool:
    """Whether a target kind is one of a GPU."""
    from nmcompile.runtime import gpu

    return kind in gpu.KINDS


def missing_gpu(kind: str) -> str:
    """The GPU and driver that a target kind needs and this machine lacks; "" if it has them."""
    from nmcompile.runtime import gpu

    if not is_gpu(kind):
        return ""
    try:
        gpu.require(kind, 0, kind)
    except DeviceError:
        return (
            f"an NVIDIA GPU of compute capability {gpu.KINDS[kind]}, with a driver for CUDA "
            f"{gpu.CUDA} or later"
        )
    return ""


def verdict(features: list[str], gpu: str) -> str:
    """What this machine lacks of CPU features and GPU, as a phrase."""
    lacking = [*features, *filter(None, [gpu])]
    return f"lacks {', '.join(lacking)}" if lacking else "can run it"


@guarded
def list_targets(as_json: JsonOption = False) -> None:
    """List what models can be compiled for, and whether this machine can run it."""
    rows = [
        {
            "name": target.name,
            "description": target.description,
            "cpu_features": list(target.cpu_features),
            "dtype": target.dtype,
            "missing_cpu_features": missing_features(target.cpu_features),
            "missing_gpu": missing_gpu(target.name),
        }
        for target in TARGETS
    ]
    if as_json:
        print_json({"targets": rows})
        return
    print_table(
        "",
        ("target", "description", "CPU features", "this machine"),
        [
            (
                target.name,
                target.description,
                ", ".join(target.cpu_features) or "any",
                verdict(missing_features(target.cpu_features), missing_gpu(target.name)),
            )
            for target in TARGETS
        ],
        spare=(2,),
    )
    say(f"--target {CUDA}: the one of these that is for this machine's GPU")
