"""Trains a small network by every method on handwritten digits, and compiles what comes out.

    python -m benchmarks.accuracy_digits --seeds 5
    python -m benchmarks.accuracy_digits --network vit --seeds 5

Every model is quantised to int8, too, on the images that it was trained on.

Every run takes the same number of epochs, at the same rate. One-shot methods spend half of them
before they prune. Nothing is tuned for a single method. Prints a table, and writes JSON, a page and
a picture to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import nmcompile
from benchmarks.accuracy import Row, picture, table, write_result
from benchmarks.networks import CNN, NETWORKS, Network
from benchmarks.recipes import DENSE, Recipe, apply, block_recipes, nm_recipes
from benchmarks.training import accuracy, digits, train
from nmcompile import runtime
from nmcompile.bench.engines import Array, open_engine
from nmcompile.frontends.onnx_export import export_onnx
from nmcompile.machine.describe import machine_document
from nmcompile.precision import INT8_TARGET
from nmcompile.quantization.calibration import Calibration
from nmcompile.quantization.measure import first_output
from nmcompile.runtime import cpu
from nmcompile.targets import find_target

TARGET = "avx512"
TRAINED = 600  # images; the others are the test set


@dataclass(frozen=True)
class Trained:
    """What one run of one recipe gives: accuracy in float32 and int8, and perhaps the model."""

    index: int
    share: float
    int8: float
    model: nn.Module | None


def recipes(network: Network = CNN) -> list[Recipe]:
    """All of them, dense first."""
    found = [DENSE]
    for name in network.patterns:
        found += nm_recipes(name)
    for density in network.densities:
        found += block_recipes(density)
    return [recipe for recipe in found if recipe.title in network.titles]


def train_one(
    recipe: Recipe, seed: int, epochs: int, network: Network = CNN
) -> tuple[nn.Module, float]:
    """The finished model, and its accuracy on the test images."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = network.make()
    here, left = (images[:TRAINED], labels[:TRAINED]), epochs
    if recipe.one_shot:
        train(model, *here, epochs=epochs // 2, seed=seed, **network.training)
        left = epochs - epochs // 2
    apply(recipe, model, *here, epochs=left, seed=seed + 1000, **network.training)
    return model, accuracy(model, images[TRAINED:], labels[TRAINED:])


def quantise_one(model: nn.Module) -> tuple[onnx.ModelProto, Array]:
    """The model in int8, and its logits for the test images as the operators are defined."""
    images, _ = digits()
    shown, test = images[:TRAINED], images[TRAINED:]
    quantised = nmcompile.quantize(model, shown, example_inputs=(test[:1],)).model
    name = quantised.graph.input[0].name
    return quantised, first_output(quantised, Calibration({name: test.numpy()}, 1), "digits")


def job(name: str, index: int, seed: int, epochs: int) -> Trained:
    """One training run, in a process of its own; the model of the first seed comes back."""
    torch.set_num_threads(1)
    network = NETWORKS[name]
    model, share = train_one(recipes(network)[index], seed, epochs, network)
    _, logits = quantise_one(model)
    _, labels = digits()
    int8 = float((logits.argmax(1) == labels[TRAINED:].numpy()).mean())
    return Trained(index, share, int8, model if seed == 0 else None)


def runs(target: str) -> bool:
    """Whether this CPU runs what is compiled for a target."""
    return set(find_target(target).cpu_features) <= set(cpu.host()[1])


def compile_int8(model: nn.Module) -> dict[str, Any]:
    """What a `Row` says of the quantised model, compiled; nothing where this CPU has no VNNI."""
    if not runs(INT8_TARGET):
        return {}
    images, _ = digits()
    test = images[TRAINED:]
    quantised, expected = quantise_one(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.nmc"
        nmcompile.compile(quantised, output=path, target=INT8_TARGET)
        with runtime.load(path, threads=1) as session:
            found = _logits(lambda image: next(iter(session.run(image).values())), test)
            seconds = session.bench(test[:1], repeats=200)
        bytes_ = path.stat().st_size
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    return {
        "int8_ms": statistics.median(seconds) * 1e3,
        "int8_bytes": bytes_,
        "int8_same": same,
    }


def compile_one(model: nn.Module) -> dict[str, Any]:
    """What a `Row` says of the model, compiled; nothing where this CPU has no AVX-512."""
    if not runs(TARGET):
        return {}
    images, _ = digits()
    test = images[TRAINED:]
    with torch.no_grad():
        expected = model(test).numpy()
    with tempfile.TemporaryDirectory() as folder:
        exported, folded = Path(folder) / "digits.onnx", Path(folder) / "folded.onnx"
        exported.write_bytes(export_onnx(model, (test[:1],), ["x"], ["y"]))
        folded.write_bytes(nmcompile.fold(exported).SerializeToString())
        engine = open_engine("onnxruntime", folded, {"x": (1, *test.shape[1:])}, 1)
        theirs = _logits(lambda image: engine.compute({"x": image.numpy()})[0], test)
        path = Path(folder) / "digits.nmc"
        nmcompile.compile(model, output=path, example_inputs=(test[:1],))
        with runtime.load(path, threads=1) as session:
            ours = _logits(lambda image: next(iter(session.run(image).values())), test)
            seconds = session.bench(test[:1], repeats=200)
        bytes_ = path.stat().st_size
    found = np.stack([ours, theirs])
    same = (found.argmax(2) == expected.argmax(1)).all(axis=0)
    error = np.abs(found - expected).max() / np.ptp(expected)
    return {
        "ms": statistics.median(seconds) * 1e3,
        "bytes": bytes_,
        "same": float(same.mean()),
        "error": float(error),
    }


def _logits(run: Callable[[Tensor], Array], images: Tensor) -> Array:
    """One row for each image."""
    return np.concatenate([np.asarray(run(images[i : i + 1])) for i in range(len(images))])


def run(network: Network, seeds: int, epochs: int, workers: int, console: Console) -> list[Row]:
    """All recipes with all seeds, then one model of each compiled."""
    made = recipes(network)
    accuracies: list[list[float]] = [[] for _ in made]
    integers: list[list[float]] = [[] for _ in made]
    models: dict[int, nn.Module] = {}
    with Progress(console=console) as progress, ProcessPoolExecutor(workers) as pool:
        task = progress.add_task("training", total=len(made) * seeds)
        jobs = [
            pool.submit(job, network.name, index, seed, epochs)
            for seed in range(seeds)
            for index in range(len(made))
        ]
        for done in as_completed(jobs):
            trained = done.result()
            accuracies[trained.index].append(trained.share)
            integers[trained.index].append(trained.int8)
            if trained.model is not None:
                models[trained.index] = trained.model
            progress.advance(task)
    rows = []
    with Progress(console=console) as progress:
        for index, recipe in enumerate(progress.track(made, description="compiling")):
            found = compile_one(models[index])
            values, int8 = sorted(accuracies[index]), sorted(integers[index])
            row = Row(recipe.title, recipe.pattern, recipe.density, values, int8)
            rows.append(replace(row, **found, **compile_int8(models[index])))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        prog="accuracy_digits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--network", choices=list(NETWORKS), default=CNN.name)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="by default as many as the network needs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    network = NETWORKS[options.network]
    epochs = options.epochs or network.epochs
    output = options.output or network.output
    runtime.configure_environment()
    torch.set_num_threads(1)
    rows = run(network, options.seeds, epochs, options.workers, Console(stderr=True))
    settings = {
        "network": network.name, "seeds": options.seeds, "epochs": epochs,
        "trained_images": TRAINED,
    }  # fmt: skip
    result = {
        "machine": machine_document(),
        "settings": settings,
        "rows": [asdict(row) for row in rows],
    }
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows))
    write_result(result, rows, output, network.about)
    picture(rows, output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
