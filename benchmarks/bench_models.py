"""Times whole models against onnxruntime and OpenVINO, interleaved in one sitting.

    python -m benchmarks.bench_models --models resnet50 --patterns dense,1x16@0.5,2:4 --rounds 30

`--deepsparse` takes DeepSparse in as well. Prints a table and writes JSON; `--readme` also rewrites
README.md's table and pictures from it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import nmcompile
from benchmarks.models import MODELS, build
from benchmarks.report import RESULTS, results_table, update_readme
from nmcompile import runtime
from nmcompile.bench.clock import interleave
from nmcompile.bench.cores import Cores
from nmcompile.bench.engines import Array, Engine, name_inputs, open_engine
from nmcompile.bench.engines.deep_sparse import deepsparse_version
from nmcompile.bench.machine import machine_document
from nmcompile.bench.onnx_export import export_onnx
from nmcompile.bench.pinning import on_cores
from nmcompile.errors import DeviceError
from nmcompile.sparsity import parse_pattern

RESNET_PATTERNS = "dense,1x16@0.5,1x16@0.25,2:4,1:4,1:16,unstructured@0.1"
# MobileNets are what the 1xN paper prunes, in narrow blocks too.
MOBILENET_PATTERNS = "dense,1x16@0.5,1x16@0.25,1x4@0.5,2:4,1:4,1:16,unstructured@0.1"
PATTERNS = {
    "resnet18": RESNET_PATTERNS,
    "resnet50": RESNET_PATTERNS,
    "mobilenet_v1": MOBILENET_PATTERNS,
    "mobilenet_v2": MOBILENET_PATTERNS,
}
PEERS = {"onnxruntime": "onnxruntime", "openvino": "openvino-f32"}  # name in results: engine
TOLERANCE = 1e-4  # of the output range


@dataclass(frozen=True)
class Settings:
    """How all models are timed.

    batch: images per run.
    size: height and width of the image.
    deepsparse: its version, None where it is not measured.
    """

    rounds: int
    batch: int
    size: int
    deepsparse: str | None
    dtype: str = "f32"


@dataclass(frozen=True)
class Row:
    """One engine on one model.

    pattern: of the weights; "" for the peers whose time does not depend on them.
    ratio: median of the faster dense peer over this engine's median, so above 1 is faster.
    error: greatest difference to torch's output as a share of its range.
    dense_bytes: the weights without their zeros left out, in float32.
    """

    model: str
    engine: str
    pattern: str
    threads: int
    median_ms: float
    min_ms: float
    ratio: float
    error: float | None = None
    compile_s: float | None = None
    load_ms: float | None = None
    artifact_bytes: int | None = None
    dense_bytes: int | None = None


@dataclass(frozen=True)
class Variant:
    """One compiled model: its artifact, and what is known before it is timed.

    onnx: the same model for DeepSparse, None where that is not measured.
    """

    pattern: str
    artifact: Path
    onnx: Path | None
    compile_s: float
    dense_bytes: int
    expected: Array


def compile_variant(
    name: str, pattern: str, x: torch.Tensor, folder: Path, export: bool
) -> Variant:
    """Build and compile one model with random weights of a pattern, and export it if asked to."""
    model = build(name, pattern)
    artifact = folder / f"{name}-{pattern.replace(':', 'of')}.nmc"
    begin = time.perf_counter()
    result = nmcompile.compile(model, output=artifact, example_inputs=(x,))
    seconds = time.perf_counter() - begin
    dense = sum(4 * int(np.prod(layer.shape)) for layer in result.report.layers)
    onnx = _export(model, x, artifact.with_suffix(".onnx")) if export else None
    return Variant(pattern, artifact, onnx, seconds, dense, _run(model, x))


def load_ms(path: Path) -> float:
    """Milliseconds of the second load: the first one also imports TVM's runtime."""
    runtime.load(path).close()
    begin = time.perf_counter()
    runtime.load(path).close()
    return (time.perf_counter() - begin) * 1e3


def time_model(
    name: str,
    patterns: Sequence[str],
    threads: Sequence[int],
    settings: Settings,
    cores: Cores,
    progress: Progress,
) -> list[Row]:
    """All rows of one model; the dense peers run it with dense weights, DeepSparse with each."""
    shape = (settings.batch, 3, settings.size, settings.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = x.numpy()
    task = progress.add_task(
        f"{name}: compiling", total=len(patterns) + len(threads) * (settings.rounds + 3)
    )
    with tempfile.TemporaryDirectory() as folder:
        variants = []
        for pattern in patterns:
            progress.update(task, description=f"{name}: compiling {pattern}")
            export = settings.deepsparse is not None
            variants.append(compile_variant(name, pattern, x, Path(folder), export))
            progress.advance(task)
        dense = build(name)
        onnx = _export(dense, x, Path(folder) / "dense.onnx")
        truth = {v.pattern: v.expected for v in variants} | {"": _run(dense, x)}
        rows = []
        for count in threads:
            progress.update(task, description=f"{name}: timing, {count} threads")
            with _engines(onnx, variants, x.shape, count) as engines, on_cores(count):
                runs = {key: _runner(engine, image) for key, engine in engines.items()}
                errors = {key: _error(run()[0][0], truth[key[1]]) for key, run in runs.items()}
                timing = interleave(
                    {key: _seconds(run) for key, run in runs.items()},
                    settings.rounds,
                    before_round=cores.wait if count > 1 else lambda: None,
                    on_round=functools.partial(progress.advance, task),
                )
            for error in timing.failed.values():
                raise error
            if timing.stopped:
                raise KeyboardInterrupt
            rows += _rows(name, count, timing.samples, errors, {v.pattern: v for v in variants})
    progress.update(task, description=f"{name}: done")
    return rows


@contextlib.contextmanager
def _engines(
    dense: Path, variants: Sequence[Variant], shape: Sequence[int], threads: int
) -> Iterator[dict[tuple[str, str], Engine]]:
    """All engines of one model by name and pattern, for as long as the context."""
    shapes = {"x": tuple(shape)}
    with contextlib.ExitStack() as stack:

        def load(name: str, model: Path) -> Engine:
            engine = open_engine(name, model, shapes, threads)
            stack.callback(engine.close)
            return engine

        engines = {(peer, ""): load(engine, dense) for peer, engine in PEERS.items()}
        for variant in variants:
            engines["nmcompile", variant.pattern] = load("nmcompile", variant.artifact)
            if variant.onnx is not None:
                engines["deepsparse", variant.pattern] = load("deepsparse", variant.onnx)
        yield engines


def _runner(engine: Engine, image: Array) -> Callable[[], tuple[list[Array], float]]:
    inputs = name_inputs(engine, {"x": image})
    return lambda: engine.run(inputs)


def _seconds(run: Callable[[], tuple[list[Array], float]]) -> Callable[[], float]:
    return lambda: run()[1]


def _rows(
    model: str,
    threads: int,
    times: Mapping[tuple[str, str], list[float]],
    errors: Mapping[tuple[str, str], float],
    variants: Mapping[str, Variant],
) -> list[Row]:
    medians = {key: statistics.median(values) for key, values in times.items()}
    best = min(medians[peer, ""] for peer in PEERS)
    rows = []
    for (engine, pattern), median in medians.items():
        variant = variants[pattern] if engine == "nmcompile" else None
        rows.append(
            Row(
                model=model,
                engine=engine,
                pattern=pattern,
                threads=threads,
                median_ms=median,
                min_ms=min(times[engine, pattern]),
                ratio=best / median,
                error=errors[engine, pattern],
                compile_s=variant.compile_s if variant else None,
                load_ms=load_ms(variant.artifact) if variant else None,
                artifact_bytes=variant.artifact.stat().st_size if variant else None,
                dense_bytes=variant.dense_bytes if variant else None,
            )
        )
    return rows


def _export(model: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """The model as an ONNX file with input x and output y."""
    path.write_bytes(export_onnx(model, (x,), ["x"], ["y"]))
    return path


def _run(model: nn.Module, x: torch.Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(x))


def _error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.ptp(expected))


def _names(allowed: Sequence[str] | None, check: Callable[[str], object]) -> Callable[[str], Any]:
    """An argparse type: a comma-separated list whose items are checked."""

    def parse(text: str) -> list[str]:
        items = [item.strip() for item in text.split(",") if item.strip()]
        for item in items:
            if allowed is not None and item not in allowed:
                raise argparse.ArgumentTypeError(f"{item!r}: expected {', '.join(allowed)}")
            try:
                check(item)
            except Exception as error:
                raise argparse.ArgumentTypeError(f"{item!r}: {error}") from error
        return items

    return parse


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `deepsparse` is its version, None where it is not measured."""
    parser = argparse.ArgumentParser(
        prog="bench_models", description=(__doc__ or "").split("\n")[0]
    )
    patterns = _names(None, lambda item: parse_pattern(item.partition("@")[0]))
    parser.add_argument("--models", type=_names(list(MODELS), str), default=list(MODELS))
    parser.add_argument("--patterns", type=patterns, help="for all models, in place of each one's")
    parser.add_argument("--threads", type=_names(None, int), default=["1"], help="e.g. 1,2")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1, help="images per run")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--deepsparse", action="store_true", help="measure it too, per pattern")
    parser.add_argument(
        "--patience",
        type=float,
        default=900.0,
        help="seconds to wait in all, on several threads, for cores that share a cache",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="rewrite README.md's table")
    options = parser.parse_args(words)
    try:
        options.deepsparse = deepsparse_version() if options.deepsparse else None
    except DeviceError as error:
        parser.error(f"--deepsparse: {error}")
    return options


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def main() -> int:
    """Run the benchmark; 1 if an output disagrees with torch."""
    options = parse_arguments()
    threads = [int(count) for count in options.threads]
    # Before TVM starts its threads: the pool can shrink later, not grow.
    runtime.configure_environment()
    settings = Settings(options.rounds, options.batch, options.size, options.deepsparse)
    rows: list[Row] = []
    cores = Cores(patience=options.patience)
    with _progress(Console(stderr=True)) as progress:
        for name in options.models:
            patterns = options.patterns or PATTERNS[name].split(",")
            rows += time_model(name, patterns, threads, settings, cores, progress)
    result = {
        "machine": machine_document(),
        "settings": asdict(settings),
        "cores": asdict(cores),
        "rows": [asdict(row) for row in rows],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    # Logs and pipes have no width of their own; rich would take them for 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(results_table(result))
    console.print(f"written to {options.output}")
    if options.readme:
        update_readme(options.output)
    wrong = [row for row in rows if row.error is not None and not row.error <= TOLERANCE]
    for row in wrong:
        console.print(f"[red]{row.model}, {row.engine} {row.pattern}: error {row.error:.1e}[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
