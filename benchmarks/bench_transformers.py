"""Times transformers whose matrix products are pruned against dense engines.

    python -m benchmarks.bench_transformers [vit_small bert_base] [--patterns dense,2:4,1x16@0.5]

Seeded weights, projected onto each pattern when compiled. Every engine runs the dense model: their
times do not depend on the weights. Batch 1; they take turns, round by round. Prints the table of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nmcompile
from benchmarks.bench_zoo import difference, export, inputs_of, take_turns
from benchmarks.zoo.borrowed import bert_base
from benchmarks.zoo.table import ZOO, Entry
from nmcompile.bench.engines.engine import Engine
from nmcompile.bench.engines.onnx_runtime import OnnxRuntime
from nmcompile.bench.engines.open_vino import OpenVinoF32
from nmcompile.bench.engines.ours import Nmcompile
from nmcompile.bench.ratios import ratio_interval

MODELS = {
    "vit_small": ZOO["vit_small"],
    "bert_base": Entry("transformers", bert_base, (1, 128, 768)),
}
PATTERNS = ("dense", "2:4", "1:4", "1x16@0.5")
PEERS = {"onnxruntime": OnnxRuntime, "openvino": OpenVinoF32}


def compile_pattern(model: Path, pattern: str, folder: Path) -> Path:
    """The artifact of a model with its products projected onto a pattern."""
    output = folder / f"{model.stem}-{pattern.replace(':', '-')}.nmc"
    if pattern == "dense":
        nmcompile.compile(str(model), output=output)
    else:
        pruning = nmcompile.Pruning(mode="project")
        nmcompile.compile(str(model), output=output, pattern=pattern, pruning=pruning)
    return output


def measure(name: str, patterns: Sequence[str], rounds: int, threads: int) -> str:
    """One model's row."""
    given, entry = inputs_of(MODELS[name]), MODELS[name]
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / f"{name}.onnx"
        model.write_bytes(export(entry, "dense"))
        engines: dict[str, Engine] = {
            pattern: Nmcompile(compile_pattern(model, pattern, Path(scratch)), {}, threads)
            for pattern in patterns
        }
        shapes = {key: list(value.shape) for key, value in given.items()}
        engines |= {key: make(model, shapes, threads) for key, make in PEERS.items()}
        if "dense" in engines:
            off = difference(engines["dense"].compute(given), engines["onnxruntime"].compute(given))
            print(f"{name}: dense is off by {off:.1g} of the range")
        samples = take_turns(engines, given, rounds, threads)
    faster = min(PEERS, key=lambda peer: statistics.median(samples[peer]))
    cells = [name, *(f"{statistics.median(samples[peer]):.1f} ms" for peer in PEERS)]
    for pattern in patterns:
        ratio = ratio_interval(samples[faster], samples[pattern]).value
        cells.append(f"{statistics.median(samples[pattern]):.1f} ms, **{ratio:.2f}x**")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compile, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=[*MODELS])
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(MODELS)}")
    patterns = arguments.patterns.split(",")
    rows = [
        measure(name, patterns, arguments.rounds, arguments.threads) for name in arguments.models
    ]
    heads = ["model", *PEERS, *patterns]
    print(f"| {' | '.join(heads)} |")
    print(f"| --- |{' --: |' * (len(heads) - 1)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
