"""The main job on real data: train two sparse CNNs on handwritten digits, compile and run them.

    python -m benchmarks.demo_digits

One model has a SpRe branch over 2:4 SR-STE, the other one 1x16 blocks. Both have to give the same
prediction for every held-out image before and after compilation, else the exit status is 1. Where
the CPU has AVX-512 VNNI, both are quantised to int8, too, and compared with onnxruntime on the same
quantised model. Then a ResNet-50 with random 1x16 weights shows the speed at a size that matters.
Artifacts go to out/. A CPU without AVX-512 compiles them all the same; what runs there is the
folded model, in onnxruntime.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from nmcompile.bench.engines import AS_DEFINED, Engine, name_inputs, open_engine, open_row
from nmcompile.errors import DeviceError
from nmcompile.frontends.onnx_export import export_onnx
from nmcompile.runtime import cpu
from nmcompile.targets import find_target
from nmcompile.train import SUBP, Method, SpRe

HELD_OUT = 500
CALIBRATED = 128  # training images that show the ranges of activations
TARGETS = {"float32": "avx512", "int8": "avx512_vnni"}
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


def missing(precision: str) -> str:
    """Why a precision cannot run on this CPU; "" where it can."""
    try:
        cpu.require(find_target(TARGETS[precision]).cpu_features, precision)
    except DeviceError as error:
        return str(error)
    return ""


def compile_int8(model: nn.Module, x: Tensor, shown: Tensor, output: Path) -> Path:
    """Quantise a model on calibration images and compile it; returns the quantised ONNX file.

    Args:
        model: the trained model.
        x: an input of the shape to compile for.
        shown: calibration images.
        output: the artifact to write; the ONNX file is written beside it.
    """
    path = output.with_suffix(".onnx")
    with _bar(f"quantising {path.name}") as advance:
        done = nmcompile.quantize(
            model, shown, output=path, example_inputs=(x,), progress=advance
        ).report
    with _bar(f"compiling {output.name}") as advance:
        result = nmcompile.compile(path, output=output, target=TARGETS["int8"], progress=advance)
    sparse = sum(layer.sparse for layer in result.report.layers)
    CONSOLE.print(
        f"int8: quantised on {done.calibrated} image{'s' * (done.calibrated != 1)}, output at "
        f"{done.loss.decibels:.0f} dB; {sparse} of {len(result.report.layers)} layers sparse"
    )
    return path


def agree_int8(artifact: Path, quantised: Path, held: Tensor, truth: np.ndarray[Any, Any]) -> bool:
    """Print how an int8 model predicts; whether it does as onnxruntime on the same ONNX file.

    Both round where the other may not: of a hundred predictions one may differ.
    """
    session = runtime.load(artifact)
    engine = open_row(AS_DEFINED, quantised, {"x": tuple(held[:1].shape)}, 1)
    (name,) = engine.inputs
    ours, theirs = [], []
    with _bar("running the held-out images in int8", len(held)) as advance:
        for index in range(len(held)):
            image = held[index : index + 1].numpy()
            ours.append(next(iter(session.run(image).values()))[0].argmax())
            theirs.append(engine.compute({name: image})[0][0].argmax())
            advance()
    same = int(np.equal(ours, theirs).sum())
    CONSOLE.print(
        f"accuracy in int8 {(np.array(ours) == truth).mean():.1%}; same prediction as onnxruntime "
        f"on the same quantised model for {same} of {len(held)}"
    )
    return same >= 0.99 * len(held)


def save_folded(model: nn.Module, x: Tensor, path: Path) -> None:
    """Write the folded model as ONNX, input x and output y."""
    exported = onnx.load_model_from_string(export_onnx(model, (x,), ["x"], ["y"]))
    onnx.save(nmcompile.fold(exported), path)


def compare_latency(
    artifacts: Mapping[str, Path], quantised: Path | None, model: nn.Module, x: Tensor, rounds: int
) -> dict[str, float]:
    """Print medians of one thread beside onnxruntime's; returns the speed-up by precision.

    onnxruntime gets the folded model too: what is compared is the running, not the folding.

    Args:
        artifacts: ours, by precision.
        quantised: what onnxruntime runs in int8.
        model: what it runs in float32, once it is folded.
        x: an input.
        rounds: of all engines in turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        peers = {"float32": Path(folder, "folded.onnx")}
        save_folded(model, x, peers["float32"])
        if quantised is not None:
            peers["int8"] = quantised
        shapes = {"x": tuple(x.shape)}
        engines = {}
        for dtype, path in artifacts.items():
            peer = "onnxruntime" if dtype == "float32" else f"onnxruntime-{dtype}"
            engines["nmcompile", dtype] = open_engine("nmcompile", path, shapes, threads=1)
            engines["onnxruntime", dtype] = open_engine(peer, peers[dtype], shapes, threads=1)
    with _bar("timing", rounds + 3) as advance:
        turns = {name: _turn(engine, x) for name, engine in engines.items()}
        timing = interleave(turns, rounds, on_round=advance)
    if timing.stopped:
        raise KeyboardInterrupt
    medians = {name: statistics.median(values) for name, values in timing.samples.items()}
    speeds = {}
    for dtype in artifacts:
        ours, theirs = medians["nmcompile", dtype], medians["onnxruntime", dtype]
        speeds[dtype] = theirs / ours
        CONSOLE.print(
            f"latency in {dtype}, batch 1, 1 thread, median of {rounds}: nmcompile {ours:.3f} ms, "
            f"onnxruntime {theirs:.3f} ms: [bold]{speeds[dtype]:.2f}x[/]"
        )
    return speeds


def _turn(engine: Engine, x: Tensor) -> Callable[[], float]:
    inputs = name_inputs(engine, {"x": x.numpy()})
    return lambda: engine.run(inputs)[1]


def predict(model: nn.Module, artifact: Path, held: Tensor, compiled: bool) -> np.ndarray[Any, Any]:
    """The outputs of an artifact or, where it cannot run, of the folded model in onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        path = artifact if compiled else Path(folder, "folded.onnx")
        if not compiled:
            save_folded(model, held[:1], path)
        name = "nmcompile" if compiled else "onnxruntime"
        engine = open_engine(name, path, {"x": tuple(held[:1].shape)}, threads=1)
    rows = []
    with _bar("running the held-out images", len(held)) as advance:
        for index in range(len(held)):
            image = name_inputs(engine, {"x": held[index : index + 1].numpy()})
            rows.append(engine.compute(image)[0])
            advance()
    return np.concatenate(rows)


def run_digits(
    title: str, method: Method, output: Path, epochs: int, precisions: Collection[str]
) -> bool:
    """Train, compile and run one model; returns whether the predictions are the same."""
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
    compiled = "float32" in precisions
    form = "compiled" if compiled else "folded, in onnxruntime"
    after = predict(model, output, held, compiled)
    print_layers(result.report)
    same = int((before.argmax(1) == after.argmax(1)).sum())
    CONSOLE.print(
        f"accuracy on {HELD_OUT} held-out images: "
        f"torch, training form {(before.argmax(1) == truth).mean():.1%}, "
        f"{form} {(after.argmax(1) == truth).mean():.1%}; "
        f"same prediction for {same} of {HELD_OUT}, largest difference "
        f"{np.abs(before - after).max() / np.ptp(before):.0e} of the output range"
    )
    artifacts, quantised, agrees = {"float32": output}, None, True
    if "int8" in precisions:
        artifacts["int8"] = output.with_name(f"{output.stem}-int8.nmc")
        shown = images[HELD_OUT : HELD_OUT + CALIBRATED]
        quantised = compile_int8(model, held[:1], shown, artifacts["int8"])
        agrees = agree_int8(artifacts["int8"], quantised, held, truth)
    if compiled:
        compare_latency(artifacts, quantised, model, held[:1], 200)
    return same == HELD_OUT and agrees


def run_resnet50(output: Path, precisions: Collection[str]) -> None:
    """Compile a ResNet-50 with random 1x16 weights, half of them kept, and time it."""
    CONSOLE.rule("ResNet-50, random 1x16 weights, half kept")
    model = build("resnet50", "1x16@0.5")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    result = compile_model(model, x, output)
    seconds = time.perf_counter() - begin
    dense = sum(4 * int(np.prod(layer.shape)) for layer in result.report.layers)
    sparse = sum(layer.sparse for layer in result.report.layers)
    CONSOLE.print(
        f"compiled in {seconds:.0f} s, {sparse} of {len(result.report.layers)} layers sparse; "
        f"file {output.stat().st_size / 2**20:.0f} MiB, dense weights {dense / 2**20:.0f} MiB"
    )
    if "float32" not in precisions:
        return
    begin = time.perf_counter()
    runtime.load(output).close()
    CONSOLE.print(f"loaded in {(time.perf_counter() - begin) * 1e3:.0f} ms")
    artifacts, quantised = {"float32": output}, None
    if "int8" in precisions:
        artifacts["int8"] = output.with_name(f"{output.stem}-int8.nmc")
        # Latency does not depend on the values, and each image takes a while.
        quantised = compile_int8(model, x, x, artifacts["int8"])
    compare_latency(artifacts, quantised, model, x, 20)


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
    reasons = {precision: missing(precision) for precision in TARGETS}
    precisions = [precision for precision, reason in reasons.items() if not reason]
    if "float32" not in precisions:
        CONSOLE.print(f"compiled, but not run: {reasons['float32']}")
    elif "int8" not in precisions:
        CONSOLE.print(f"float32 only: {reasons['int8']}")
    names = ("digits-2of4.nmc", "digits-1x16.nmc")
    same = [
        run_digits(title, method, options.output / name, options.epochs, precisions)
        for (title, method), name in zip(METHODS.items(), names, strict=True)
    ]
    if not options.no_resnet50:
        run_resnet50(options.output / "resnet50-1x16.nmc", precisions)
    if not all(same):
        CONSOLE.print("[red]error: a compiled model predicts something else than its source[/]")
        return 1
    CONSOLE.print(f"all predictions agree; artifacts are in {options.output}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
