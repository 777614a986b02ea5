"""Whole models of the zoo against onnxruntime: dense, and with half of their convolutions 1x16.

    python -m benchmarks.bench_zoo compile [MODEL ...]
    python -m benchmarks.bench_zoo measure [MODEL ...] [--seconds 150]
    python -m benchmarks.bench_zoo table

`compile` writes each model as ONNX files and artifacts to `out/zoo`; `measure` runs them in turns
with onnxruntime, batch 1, on one thread, and goes on where it was stopped: what was measured of the
same sources is left alone, unless it is named. `table` prints the results.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import nmcompile
from benchmarks.zoo.table import ZOO, Entry
from nmcompile.bench.clock import interleave
from nmcompile.bench.engines.engine import Array, Engine
from nmcompile.bench.engines.onnx_runtime import OnnxRuntime
from nmcompile.bench.engines.ours import Nmcompile
from nmcompile.bench.pinning import on_cores
from nmcompile.bench.ratios import ratio_interval
from nmcompile.cache.sources import source_digest
from nmcompile.machine.describe import PACKAGES, Machine, describe_machine, package_versions
from nmcompile.runtime.files import replace_file

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "out" / "zoo"
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"
PATTERNS = ("dense", "1x16@0.5")
PEER = "onnxruntime"
ROUNDS, WARMUP = 15, 2


class Measured(msgspec.Struct, frozen=True):
    """One model.

    samples_ms: by engine, onnxruntime or ours with a pattern; sample i of each is of round i.
    error: largest difference to onnxruntime's outputs, of the range of each, by pattern.
    sources: digest of the code that was measured.
    """

    model: str
    samples_ms: dict[str, list[float]]
    error: dict[str, float]
    sources: str
    date: str

    def ratio(self, pattern: str) -> float:
        """How many times as fast as onnxruntime: the median over rounds."""
        return ratio_interval(self.samples_ms[PEER], self.samples_ms[pattern]).value


class Results(msgspec.Struct, frozen=True):
    """The file."""

    machine: Machine
    versions: dict[str, str]
    models: list[Measured]


def sources() -> str:
    """The digest of the code that compiles and runs."""
    folders = [ROOT / name for name in ("nmcompile", "passes", "runtime")]
    return source_digest(folders)[:12]


def model_path(name: str, pattern: str) -> Path:
    """The ONNX file of a model."""
    return FOLDER / f"{name}-{pattern}.onnx"


def artifact_path(name: str, pattern: str) -> Path:
    """What these sources have compiled it to."""
    return FOLDER / f"{name}-{pattern}-{sources()}.nmc"


def export(entry: Entry, pattern: str) -> bytes:
    """A model as an ONNX file with an input x."""
    from nmcompile.frontends.onnx_export import export_onnx

    model, x = entry.build(pattern), torch.zeros(entry.shape)
    with torch.no_grad():
        made = model(x)
    count = 1 if isinstance(made, torch.Tensor) else len(made)
    return export_onnx(model, (x,), ["x"], [f"y{index}" for index in range(count)])


def compile_models(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Write what is not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        for pattern in patterns:
            path, artifact = model_path(name, pattern), artifact_path(name, pattern)
            if not path.exists():
                replace_file(path, [export(ZOO[name], pattern)])
            if artifact.exists():
                continue
            for old in FOLDER.glob(f"{name}-{pattern}-*.nmc"):
                old.unlink()
            begin = time.monotonic()
            report = nmcompile.compile(str(path), output=artifact).report
            parts = sum(segment.runs == PEER for segment in report.segments)
            took = time.monotonic() - begin
            said = f", {parts} parts in onnxruntime" if parts else ""
            print(f"{name} {pattern}: compiled in {took:.1f} s{said}", flush=True)


def inputs_of(entry: Entry) -> dict[str, np.ndarray[Any, Any]]:
    """What models are run on."""
    x = np.random.default_rng(0).standard_normal(entry.shape)
    return {"x": x.astype(np.float32)}


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest, of the range of each output; infinite where shapes differ."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if b.size:
            extent = max(float(np.abs(b).max()), 1e-6)
            worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / extent)
    return worst


def take_turns(
    engines: Mapping[str, Engine], given: Mapping[str, Array], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of each engine, round by round; closes the engines."""
    with on_cores(threads, threads=True):
        turns = {
            key: functools.partial(lambda engine: engine.run(given)[1], engine)
            for key, engine in engines.items()
        }
        timing = interleave(turns, rounds, warmup=WARMUP)
    for engine in engines.values():
        engine.close()
    if timing.failed:
        raise next(iter(timing.failed.values()))
    return timing.samples


def measure(name: str, patterns: Sequence[str], rounds: int) -> Measured:
    """Run a model in turns with onnxruntime."""
    given, error = inputs_of(ZOO[name]), {}
    engines: dict[str, Engine] = {PEER: OnnxRuntime(model_path(name, "dense"), {}, 1)}
    for pattern in patterns:
        engines[pattern] = Nmcompile(artifact_path(name, pattern), {}, 1)
        expected = OnnxRuntime(model_path(name, pattern), {}, 1).compute(given)
        error[pattern] = difference(engines[pattern].compute(given), expected)
    samples = take_turns(engines, given, rounds, 1)
    return Measured(name, samples, error, sources(), time.strftime("%Y-%m-%d"))


def read_results(path: Path = RESULTS) -> list[Measured]:
    """What was measured, in the order of the zoo."""
    if not path.exists():
        return []
    found = {one.model: one for one in msgspec.json.decode(path.read_bytes(), type=Results).models}
    return [found[name] for name in ZOO if name in found]


def write_results(models: Sequence[Measured], path: Path = RESULTS) -> None:
    """The file, sample by sample to a thousandth of a millisecond."""
    rounded = [
        msgspec.structs.replace(
            one, samples_ms={k: [round(v, 3) for v in s] for k, s in one.samples_ms.items()}
        )
        for one in models
    ]
    results = Results(describe_machine(), package_versions(PACKAGES), rounded)
    content = msgspec.json.format(msgspec.json.encode(results), indent=1)
    replace_file(path, [content + b"\n"])


def table(found: Sequence[Measured]) -> str:
    """The table of docs/performance.md, and what it comes to."""
    lines = [
        "| model | family | input | onnxruntime | dense | speed-up | 1x16, 50% kept | speed-up |",
        "| --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for one in found:
        entry = ZOO[one.model]
        cells = [one.model, entry.family, "x".join(map(str, entry.shape[1:]))]
        cells.append(_ms(one.samples_ms[PEER]))
        for pattern in PATTERNS:
            if pattern in one.samples_ms:
                cells += [_ms(one.samples_ms[pattern]), f"**{one.ratio(pattern):.2f}x**"]
            else:
                cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    said = []
    for pattern in PATTERNS:
        ratios = {one.model: one.ratio(pattern) for one in found if pattern in one.samples_ms}
        if ratios:
            slowest = min(ratios, key=lambda name: ratios[name])
            mean = statistics.geometric_mean(ratios.values())
            said.append(
                f"{pattern}: geometric mean of {len(ratios)} models {mean:.2f}x, "
                f"the least {ratios[slowest]:.2f}x "
                f"({slowest})"
            )
    return "\n".join([*lines, "", ". ".join(said) + "."])


def _ms(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.2f} ms"


def main() -> None:
    """Compile, measure or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("task", choices=("compile", "measure", "table"))
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=150.0, help="begin no model after these")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in ZOO]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(ZOO)}")
    patterns = arguments.patterns.split(",")
    found = {one.model: one for one in read_results(arguments.results)}
    if arguments.task == "compile":
        compile_models(arguments.models or list(ZOO), patterns)
    elif arguments.task == "measure":
        begin, code = time.monotonic(), sources()
        for name in arguments.models or list(ZOO):
            done = name in found and found[name].sources == code and not arguments.models
            if done or not all(artifact_path(name, pattern).exists() for pattern in patterns):
                continue
            if time.monotonic() - begin > arguments.seconds:
                print("there are more to measure")
                break
            one = found[name] = measure(name, patterns, arguments.rounds)
            ratios = ", ".join(
                f"{p} {one.ratio(p):.2f}x (off by {one.error[p]:.1g})" for p in patterns
            )
            print(f"{name}: {_ms(one.samples_ms[PEER])}, {ratios}", flush=True)
            write_results([found[name] for name in ZOO if name in found], arguments.results)
    else:
        print(table(list(found.values())))


if __name__ == "__main__":
    main()
