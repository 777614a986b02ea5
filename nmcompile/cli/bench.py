"""`nmc bench`: how fast an artifact is, and beside what users run today."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmcompile.cli.guard import guarded, working
from nmcompile.cli.layers import layer_rows, plot_layers, print_layer_times
from nmcompile.cli.options import ArtifactArgument, JsonOption, ThreadsOption, parse_list
from nmcompile.cli.output import print_json, print_table
from nmcompile.errors import InputError

if TYPE_CHECKING:
    from nmcompile.folding import Progress
    from nmcompile.runtime import Session, TensorSpec

WARMUP = 5  # rounds: engines tune themselves and allocate in the first ones
SETTLE = 0.05  # seconds between engines: the peers' threads spin on their cores after a run
OURS = "nmcompile"


@guarded
def bench_artifact(
    artifact: ArtifactArgument,
    against: Annotated[
        str, typer.Option(metavar="LIST", help="Engines to measure too: onnxruntime,openvino.")
    ] = "",
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="What these engines run, in float32."),
    ] = None,
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds to measure.")] = 30,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show each layer's time and share of the roof.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the layers under the roofs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the latency of a compiled model on random inputs.

    The engines take turns round by round, so that a slower minute of the machine meets all of
    them. In its turn each waits for the others' threads to fall asleep and runs twice, the second
    run counts: the first finds the caches full of the others' weights.
    """
    from nmcompile import runtime
    from nmcompile.engines import ENGINES, name_inputs, open_engine

    names = parse_list(against)
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise typer.BadParameter(
            f"expected some of {','.join(ENGINES)}, found {unknown[0]!r}", param_hint="--against"
        )
    if names and model is None:
        raise typer.BadParameter(
            "--against needs the ONNX model that the engines run: add --model MODEL.onnx",
            param_hint="--against",
        )
    with working() as progress:
        progress("loading the artifact")
        session = runtime.load(artifact, threads=threads)
        inputs = random_inputs(session.inputs)
        runs: dict[str, Callable[[], Any]] = {OURS: lambda: session.run(inputs)}
        versions: dict[str, str] = {}
        for name in names:
            assert model is not None
            progress(f"loading {name}")
            shapes = {spec.name: spec.shape for spec in session.inputs}
            engine = open_engine(name, model, shapes, session.threads)
            fed = name_inputs(engine, inputs)
            versions[name] = engine.version
            runs[name] = lambda engine=engine, fed=fed: engine.run(fed)  # type: ignore[misc]
        differences = compare(session, inputs, {name: runs[name] for name in names})
        seconds = measure(runs, repeats, progress)
        table: list[dict[str, Any]] = []
        if layers or plot is not None:
            progress("profiling")
            from nmcompile.roofs import measure_roofs

            roofs = measure_roofs()
            times = session.profile(inputs)
            table = layer_rows(times, session.manifest.layers, roofs, session.threads)
    rows = summarise(seconds, differences, versions)
    if plot is not None:
        title = f"{artifact.name}, {session.threads} thread{'s' * (session.threads > 1)}"
        plot_layers(table, roofs, session.threads, title, plot)
    if as_json:
        document = {"artifact": str(artifact), "threads": session.threads, "repeats": repeats}
        details = {"roofs": asdict(roofs), "layers": table} if table else {}
        print_json(document | {"engines": rows} | details)
        return
    print_engines(rows, f"{artifact}, threads: {session.threads}, rounds: {repeats}")
    if layers:
        print_layer_times(table, roofs, session.threads)
    if plot is not None:
        typer.echo(f"layers drawn in {plot}")


def random_inputs(specs: Sequence["TensorSpec"]) -> dict[str, Any]:
    """Seeded inputs: normal where the dtype is a float, zeros (a legal index) elsewhere."""
    import numpy as np

    from nmcompile.runtime.manifest import numpy_dtype

    random = np.random.default_rng(0)
    inputs = {}
    for spec in specs:
        dtype = numpy_dtype(spec.dtype)
        values = random.standard_normal(spec.shape) if "float" in spec.dtype else 0
        inputs[spec.name] = np.full(spec.shape, values).astype(dtype)
    return inputs


def measure(
    runs: Mapping[str, Callable[[], Any]], repeats: int, progress: "Progress"
) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` of them, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(WARMUP + repeats):
        progress("measuring", index, WARMUP + repeats)
        for name, run in runs.items():
            if len(runs) > 1:
                time.sleep(SETTLE)
            run()
            start = time.perf_counter()
            run()
            if index >= WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(
    session: "Session", inputs: Mapping[str, Any], peers: Mapping[str, Callable[[], list[Any]]]
) -> dict[str, float]:
    """The largest difference from each peer's outputs, as a share of their range.

    Raises:
        InputError: a peer returns other shapes: it runs another model.
    """
    import numpy as np

    ours = list(session.run(inputs).values())
    differences = {}
    for name, run in peers.items():
        try:
            theirs = run()
        except Exception as error:  # every engine has exceptions of its own
            lines = str(error).strip().splitlines() or ["no message"]
            raise InputError(
                f"{name} cannot run the model on the artifact's inputs: {lines[0]}; name the model "
                "that the artifact was made from"
            ) from error
        if [a.shape for a in ours] != [a.shape for a in theirs]:
            raise InputError(
                f"{name} returns outputs of the shapes {[a.shape for a in theirs]}, the artifact "
                f"{[a.shape for a in ours]}; name the model that the artifact was made from"
            )
        differences[name] = max(
            float(np.abs(a.astype(np.float64) - b).max() / max(float(np.ptp(b)), 1e-30))
            for a, b in zip(ours, theirs, strict=True)
        )
    return differences


def summarise(
    seconds: Mapping[str, Sequence[float]],
    differences: Mapping[str, float],
    versions: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row per engine; `speedup` is how many times faster the artifact is."""
    ours = statistics.median(seconds[OURS])
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append(
            {
                "name": name,
                "version": versions.get(name, ""),
                "median_ms": median * 1e3,
                "min_ms": min(values) * 1e3,
                "max_ms": max(values) * 1e3,
                "speedup": median / ours if name != OURS else None,
                "difference": differences.get(name),
            }
        )
    peers = [row["median_ms"] for row in rows[1:]]
    rows[0]["speedup"] = min(peers) / rows[0]["median_ms"] if peers else None
    return rows


def print_engines(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print the engines, and the ratio that counts."""
    print_table(
        title,
        ("engine", "median ms", "min ms", "max ms", "ours is faster by", "difference"),
        [
            (
                f"{row['name']} {row['version']}".strip(),
                f"{row['median_ms']:.3f}",
                f"{row['min_ms']:.3f}",
                f"{row['max_ms']:.3f}",
                f"{row['speedup']:.2f}x" if row["speedup"] and row["name"] != OURS else "",
                f"{row['difference']:.1e} of the range" if row["difference"] is not None else "",
            )
            for row in rows
        ],
        right=(1, 2, 3, 4),
    )
    if rows[0]["speedup"]:
        typer.echo(f"{rows[0]['speedup']:.2f}x the speed of the fastest of the others")
