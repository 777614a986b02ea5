"""Times a 1xN model whose filters were rearranged before pruning against the same one in order.

    python -m benchmarks.bench_rearranged --model mobilenet_v2 --pattern 1x16@0.5 --threads 1

Both are compiled and run in turns. Rearranging leaves the filters of a block all over their layer:
here they are shuffled, which is as far as it goes. Prints both medians and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.models import MODELS, build
from nmcompile import compile, runtime
from nmcompile.bench.clock import interleave

ROUNDS = 200


def shuffle_filters(model: nn.Module, seed: int = 0) -> nn.Module:
    """Put the filters of every pruned convolution in a random order, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1 and (module.weight == 0).any():
                order = torch.randperm(module.out_channels, generator=generator)
                module.weight.copy_(module.weight[order])
    return model


def main() -> None:
    """Compile both, time them in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=MODELS, default="mobilenet_v2")
    parser.add_argument("--pattern", default="1x16@0.5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    models = {
        "in order": build(arguments.model, arguments.pattern),
        "rearranged": shuffle_filters(build(arguments.model, arguments.pattern)),
    }
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            path = Path(folder) / f"{name}.nmc"
            report = compile(model, output=path, example_inputs=(x,)).report
            sparse = sum(layer.sparse for layer in report.layers)
            scattered = sum(layer.scattered for layer in report.layers)
            print(f"{name}: {sparse} layers sparse, {scattered} scattered")
            sessions[name] = runtime.load(path, threads=arguments.threads)

    def turn(session: runtime.Session) -> Callable[[], float]:
        return lambda: session.bench(x, repeats=1, warmup=0)[0]

    timing = interleave({name: turn(s) for name, s in sessions.items()}, arguments.rounds)
    medians = {name: float(np.median(samples)) for name, samples in timing.samples.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.3f} ms")
    print(f"ratio: {medians['rearranged'] / medians['in order']:.3f}")


if __name__ == "__main__":
    main()
