"""`nmc bench`: how fast models are over a matrix of settings, beside what users run today."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmcompile.cli.bench.compare import compare_runs
from nmcompile.cli.bench.plan import (
    default_output,
    need_extra,
    parse_counts,
    parse_duration,
    parse_size,
    read_engines,
    read_patterns,
    read_sources,
    read_targets,
    refuse_for_artifacts,
    refuse_for_devices,
    refuse_short,
)
from nmcompile.cli.bench.report import report_runs
from nmcompile.cli.bench.table import plot_profile, print_document, print_profiles, print_run
from nmcompile.cli.checks import check_outputs
from nmcompile.cli.completion import (
    complete_bench,
    complete_engines,
    complete_form,
    complete_patterns,
)
from nmcompile.cli.default_group import DEFAULT, DefaultCommand, DefaultGroup
from nmcompile.cli.figures import load_pyplot
from nmcompile.cli.guard import INTERRUPTED, guarded, working
from nmcompile.cli.options import JsonOption, KeyOption, ShapeOption, read_fleet
from nmcompile.cli.printing import say
from nmcompile.errors import DeviceError, InputError

if TYPE_CHECKING:
    from nmcompile.bench.results import Run
    from nmcompile.bench.run import Failure

bench_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)


@bench_app.command(DEFAULT, hidden=True, cls=DefaultCommand)
@guarded
def bench_models(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="ONNX files, package.module:factory (torch; say the shapes with --shape), or "
            "compiled OUT.nmc.",
            autocompletion=complete_bench,
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Engines to measure too: onnxruntime, openvino-f32, openvino-bf16, torch, "
            "torch-compile, tvm, deepsparse; in int8, on the model quantised: onnxruntime-int8, "
            "openvino-int8, deepsparse-int8; all for those that are installed.",
            autocompletion=complete_engines,
        ),
    ] = "",
    patterns: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What weights are pruned to: as-is, dense, 2:4, 1x16@0.5, unstructured@0.1, ...",
            autocompletion=complete_patterns,
        ),
    ] = "as-is",
    targets: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What to compile for, see `nmc targets`; for those of integers (avx512_vnni, "
            "avx512_bf16, avx512_amx) a model that is not quantised is, on seeded random inputs or "
            "on --data; avx512_bf16:bf16 and avx512_amx:bf16 round it to bfloat16.",
            autocompletion=complete_form,
        ),
    ] = "avx512",
    threads: Annotated[
        str, typer.Option(metavar="LIST", help="Cores to run on, as 1,2; all by default.")
    ] = "",
    batch: Annotated[
        str, typer.Option(metavar="LIST", help="Images per run, as 1,8; the model's by default.")
    ] = "",
    shape: ShapeOption = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A checkpoint for the torch factory.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="What other engines run in place of OUT.nmc."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            "--repeats",
            min=1,
            help="Rounds to measure; up to three times as many where the result is noisy.",
        ),
    ] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them that do not count.")] = 3,
    budget: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=parse_duration, help="Stop after 90s, 10m, 2h."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_size, help="Leave out what needs more: 8G."),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait, in all, for cores that share a cache.")
    ] = 60.0,
    pin: Annotated[bool, typer.Option(help="Keep to as many cores as there are threads.")] = True,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE.npz",
            help="Labelled images, for top-1: a subfolder per class, or arrays x and y.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images of --data to take.")] = 200,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show each layer's time and share of the roof.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the layers under the roofs.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.json",
            help="Where the result goes; nmc-bench.json (numbered where there is one) by default. "
            "Missing folders are made.",
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="What to call this run.")] = "",
    tracker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Measure on the devices of this tracker.")
    ] = "",
    key: KeyOption = "",
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a device may take for one case.")
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Measure latency over models x patterns x targets x threads x batch x engines.

    The engines take turns round by round, so that a slower minute of the machine meets all of
    them; each runs twice in its turn, and the second run counts: the first finds the caches full
    of the others' weights. Ctrl-C ends the rounds and keeps what was measured. Exits with 1 where
    a case failed; the others are in the file all the same.
    """
    need_extra("nmc bench", "msgspec")
    rows = read_engines(against)
    changed = {"--patterns": patterns != "as-is", "--targets": targets != "avx512",
               "--batch": bool(batch)}  # fmt: skip
    refuse_for_artifacts(models, [name for name, given in changed.items() if given])
    specs, kinds = read_patterns(patterns), read_targets(targets)
    batches: list[int | None] = [*parse_counts(batch, "--batch")] if batch else [None]
    from nmcompile.runtime.native import available_threads, default_threads

    cores = available_threads()
    counts = [default_threads()]
    if threads:
        most = None if tracker else cores  # a device may have more
        counts = parse_counts(threads, "--threads", most, "the cores that this process may use")
    refuse_short(budget, len(models) * len(batches) * len(counts), specs, kinds, rows)
    sources = read_sources(models, shape, weights, model, len(rows) > 1)
    fleet = read_fleet(tracker, key, timeout)
    if fleet is not None:
        refuse_for_devices(len(rows) > 1, data)
    from nmcompile.bench.matrix import expand
    from nmcompile.bench.remote import run_remote
    from nmcompile.bench.results import write_run
    from nmcompile.bench.run import Plan, run_plan

    names = [source.name for source in sources]
    plan = Plan(
        sources, expand(names, specs, kinds, counts, batches, rows), rounds, warmup, pin, patience,
        budget, memory, data, samples, label,
    )  # fmt: skip
    path = output or default_output(Path())
    # Now, not after minutes of measuring.
    check_outputs(path, plot)
    if plot is not None:
        load_pyplot()

    def save(run: "Run") -> bool:
        """Also after every group, so that nothing that comes later can lose it."""
        measured = any(case.samples_ms for case in run.cases)
        if measured:
            write_run(run, path)
        return measured

    with working() as progress:
        if fleet is not None:
            outcome = run_remote(plan, fleet, progress=progress, on_case=save)
        else:
            outcome = run_plan(plan, progress=progress, on_group=save)
    run = outcome.run
    measured = save(run)
    if measured:
        if plot is not None:
            plot_profile(run, plot)
    if as_json and measured:
        print_document(run, path, layers)
    elif measured:
        print_run(run)
        if layers:
            print_profiles(run)
        if plot is not None:
            say(f"layers drawn in {plot}")
        say(f"written to {path}")
    for note in outcome.notes:
        say(f"note: {note}", err=True)
    _end(outcome.failures, outcome.interrupted, measured, run.complete, path)


def _end(
    failures: tuple["Failure", ...], interrupted: bool, measured: bool, complete: bool, path: Path
) -> None:
    """Say what is missing, and exit as that deserves."""
    failures = tuple(dict.fromkeys(failures))  # on several threads alike
    for failure in failures:
        say(f"not measured: {failure.what}: {failure.why}", err=True)
    if interrupted:
        kept = f"; what was measured is in {path}" if measured else ", before anything was measured"
        say(f"interrupted{kept}", err=True)
        raise typer.Exit(INTERRUPTED)
    if measured and not complete:
        say("note: the time was up before all rounds were measured", err=True)
    failed = [failure for failure in failures if not failure.declined]
    if failed or not measured:
        if not failures:
            raise InputError("nothing was measured: the time was spent before the first round")
        first = (failed or list(failures))[0]
        more = f" (and {len(failed) - 1} more cases)" if failed[1:] else ""
        raise DeviceError(f"{first.what} was not measured{more}: {first.why}")


bench_app.command("compare")(compare_runs)
bench_app.command("report")(report_runs)
