"""The main job on real data: train two sparse CNNs on handwritten digits, compile and run them.

    python -m benchmarks.demo_digits

One model has a SpRe branch over 2:4 SR-STE, the other one 1x16 blocks. Both have to give the same
prediction for every held-out image before and after compilation, else the exit status is 1. Then a
ResNet-50 with random 1x16 weights shows the speed at a size that matters. Artifacts go to out/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import nmcompile
from benchmarks.models import build
from benchmarks.training import digits, digits_net, train
from nmcompile import CompileResult, InspectionReport, runtime
from nmcompile.bench.clock import interleave
from nmcompile.bench.engines import Engine, name_inputs, open_engine
from nmcompile.frontends.onnx_export import export_onnx
from nmcompile.train import SUBP, Method, SpRe

HELD_OUT = 500
# Logs and pipes have no width of their own; rich would take them for 80 columns.
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)
METHODS: dict[str, Method] = {
    "SpRe over 2:4 SR-STE": SpRe("2:4"),
    "SUBP, 1x16 blocks, half kept": SUBP("1x16", 0.5),
}


@contextmanager
def _bar(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Progress on standard error; call it to advance, or with a stage's name."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title} ...")
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)

        def advance(stage: str = "", done: int = 0, of: int = 0) -> None:
            if not stage:
                progress.advance(task)
            else:
                progress.update(task, description=f"{title}: {stage}", completed=done)
                progress.update(task, total=of or None)

        yield advance


def compile_model(model: nn.Module, x: Tensor, output: Path) -> CompileResult:
    """Compile with progress."""
    with _bar(f"compiling {output.name}") as advance:
        return nmcompile.compile(model, output=output, example_inputs=(x,), progress=advance)


def print_layers(report: InspectionReport) -> None:
    """The per-layer report: what was found, and how it runs."""
    table = Table("layer", "weight", "pattern", "density", "kernel", "sparse", title="layers")
    for layer in report.layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.pattern,
            f"{layer.density:.2f}",
            layer.kernel,
            "yes" if layer.sparse else f"no: {layer.reason}",
        )
    CONSOLE.print(table)
    for note in report.notes:
        CONSOLE.print(f"[dim]{note}[/]")


def compare_latency(artifact: Path, model: nn.Module, x: Tensor, rounds: int) -> float:
    """Print medians of one thread beside onnxruntime's; returns the speed-up.

    onnxruntime gets the folded model too: what is compared is the running, not the folding.
    """
    exported = onnx.load_model_from_string(export_onnx(model, (x,), ["x"], ["y"]))
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder, "folded.onnx")
        onnx.save(nmcompile.fold(exported), folded)
        shapes = {"x": tuple(x.shape)}
        engines = {
            "onnxruntime": open_engine("onnxruntime", folded, shapes, threads=1),
            "nmcompile": open_engine("nmcompile", artifact, shapes, threads=1),
        }
    with _bar("timing", rounds + 3) as advance:
        turns = {name: _turn(engine, x) for name, engine in engines.items()}
        timing = interleave(turns, rounds, on_round=advance)
    if timing.stopped:
        raise KeyboardInterrupt
    times = timing.samples
    medians = {name: statistics.median(values) for name, values in times.items()}
    speed = medians["onnxruntime"] / medians["nmcompile"]
    CONSOLE.print(
        f"latency, batch 1, 1 thread, median of {rounds}: nmcompile "
        f"{medians['nmcompile']:.3f} ms, onnxruntime {medians['onnxruntime']:.3f} ms: "
        f"[bold]{speed:.2f}x[/]"
    )
    return speed


def _turn(engine: Engine, x: Tensor) -> Callable[[], float]:
    inputs = name_inputs(engine, {"x": x.numpy()})
    return lambda: engine.run(inputs)[1]


def run_digits(title: str, method: Method, output: Path, epochs: int) -> bool:
    """Train, compile and run one model; returns whether all predictions are the same."""
    CONSOLE.rule(title)
    images, labels = digits()
    torch.manual_seed(0)
    model = method.prepare(digits_net())
    with _bar(f"training, {epochs} epochs", epochs) as advance:
        train(
            model,
            images[HELD_OUT:],
            labels[HELD_OUT:],
            epochs=epochs,
            method=method,
            on_epoch=advance,
        )
    held, truth = images[:HELD_OUT], labels[:HELD_OUT].numpy()
    with torch.no_grad():
        before = model(held).numpy()
    result = compile_model(model, held[:1], output)
    session = runtime.load(output)
    with _bar("running the held-out images", HELD_OUT) as advance:
        rows = []
        for index in range(HELD_OUT):
            rows.append(next(iter(session.run(held[index : index + 1]).values())))
            advance()
    after = np.concatenate(rows)
    print_layers(result.report)
    same = int((before.argmax(1) == after.argmax(1)).sum())
    CONSOLE.print(
        f"accuracy on {HELD_OUT} held-out images: "
        f"torch, training form {(before.argmax(1) == truth).mean():.1%}, "
        f"compiled {(after.argmax(1) == truth).mean():.1%}; "
        f"same prediction for {same} of {HELD_OUT}, largest difference "
        f"{np.abs(before - after).max() / np.ptp(before):.0e} of the output range"
    )
    compare_latency(output, model, held[:1], 200)
    return same == HELD_OUT


def run_resnet50(output: Path) -> None:
    """Compile a ResNet-50 with random 1x16 weights, half of them kept, and time it."""
    CONSOLE.rule("ResNet-50, random 1x16 weights, half kept")
    model = build("resnet50", "1x16@0.5")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    result = compile_model(model, x, output)
    seconds = time.perf_counter() - begin
    dense = sum(4 * int(np.prod(layer.shape)) for layer in result.report.layers)
    begin = time.perf_counter()
    runtime.load(output).close()
    load = time.perf_counter() - begin
    sparse = sum(layer.sparse for layer in result.report.layers)
    CONSOLE.print(
        f"compiled in {seconds:.0f} s, {sparse} of {len(result.report.layers)} layers sparse; "
        f"file {output.stat().st_size / 2**20:.0f} MiB, dense weights {dense / 2**20:.0f} MiB; "
        f"loaded in {load * 1e3:.0f} ms"
    )
    compare_latency(output, model, x, 20)


def main() -> int:
    """Run the demo; 1 if a prediction differs."""
    parser = argparse.ArgumentParser(prog="demo_digits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for artifacts")
    parser.add_argument("--no-resnet50", action="store_true", help="digits only")
    options = parser.parse_args()
    # Before TVM starts its threads: the pool can shrink later, not grow.
    runtime.configure_environment()
    # Layers this small gain nothing from threads, and lose much where another process wants a core.
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("digits-2of4.nmc", "digits-1x16.nmc")
    same = [
        run_digits(title, method, options.output / name, options.epochs)
        for (title, method), name in zip(METHODS.items(), names, strict=True)
    ]
    if not options.no_resnet50:
        run_resnet50(options.output / "resnet50-1x16.nmc")
    if not all(same):
        CONSOLE.print("[red]error: a compiled model predicts something else than its source[/]")
        return 1
    CONSOLE.print(f"all predictions agree; artifacts are in {options.output}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
