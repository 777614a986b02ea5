"""From a trained dense CNN to a sparse one that runs without its zeros, step by step.

    python -m benchmarks.tutorial

Read it from top to bottom: every step stands alone and prints what it did. It takes a minute.
Models and artifacts go to out/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nmcompile as nmc
from benchmarks.training import accuracy, digits, digits_net, train
from nmcompile.train import SRSTE, Method, SpRe

PATTERN = "2:4"  # of every 4 weights along the input channels, 2 are kept
TRAINED = 1297  # images; the other 500 are for testing


def main() -> int:
    """Run all steps."""
    parser = argparse.ArgumentParser(prog="tutorial", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12, help="of each training")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for artifacts")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    nmc.runtime.configure_environment()
    torch.set_num_threads(1)  # layers this small gain nothing from more
    torch.manual_seed(0)
    images, labels = digits()
    here, test = (images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:])

    # Step 1. A dense model, trained as always. Yours may come from anywhere.
    dense = train(digits_net(), *here, epochs=options.epochs)
    print(f"1. dense: {accuracy(dense, *test):.1%} of the test images recognised")

    # Step 2. Two copies, fine-tuned towards 2:4. `prepare` masks the weights in place; the loop
    # calls `on_epoch` and `on_step` (see `train`), and is otherwise the one from step 1.
    # SpRe trains a second branch beside each 3x3; scale 0 lets it start without an effect.
    methods: dict[str, Method] = {
        "SR-STE": SRSTE(PATTERN),
        "SpRe": SpRe(PATTERN, scale=0.0),
    }
    tuned: dict[str, nn.Module] = {}
    for name, method in methods.items():
        model = method.prepare(copy.deepcopy(dense))
        train(model, *here, epochs=options.epochs, rate=0.02, method=method)
        tuned[name] = model
        print(f"2. {name}: {accuracy(model, *test):.1%}")
        for row in method.layers:
            print(f"   {row.name}: {row.skipped or row.note or 'masked'}")

    # Step 3. Folding takes the training-only structure away: masks, batch norms, branches. What
    # comes back is a torch model that computes the same. (`method.finalize(model)` does so within
    # your own module, and verifies it; compiling folds by itself, too.)
    folded: dict[str, nn.Module] = {}
    for name, model in tuned.items():
        folded[name] = nmc.fold(model, (images[:1],))
        with torch.no_grad():
            difference = (folded[name](test[0][:1]) - model(test[0][:1])).abs().max()
        print(f"3. {name}: folded, largest difference {difference:.0e}")

    # Step 4. Every layer that should hold the pattern does: proven from the weights, not believed.
    for name, model in folded.items():
        report = nmc.inspect(model, example_inputs=(images[:1],))
        for layer in report.layers:
            print(f"4. {name}: {layer.name} {layer.pattern}, density {layer.density:.2f}")
        kept = [layer for layer in report.layers if layer.pattern == PATTERN]
        assert len(kept) == 3, "three convolutions are pruned"

    # Step 5. Compile, run, compare.
    artifacts = {}
    for name, model in {"dense": dense, **tuned}.items():
        path = options.output / f"tutorial-{name.lower()}.nmc"
        nmc.compile(model, output=path, example_inputs=(images[:1],))
        session = nmc.runtime.load(path, threads=1)
        found = [next(iter(session.run(x[None]).values())).argmax() for x in test[0]]
        with torch.no_grad():
            same = int((np.array(found) == model(test[0]).argmax(1).numpy()).sum())
        artifacts[name] = (
            float((np.array(found) == test[1].numpy()).mean()),
            statistics.median(session.bench(images[:1], repeats=200)) * 1e3,
            path.stat().st_size / 1024,
        )
        print(f"5. {name}: compiled, same prediction as torch for {same} of {len(found)}")
        assert same == len(found)
    for name, (share, ms, size) in artifacts.items():
        print(f"   {name:8s} accuracy {share:.1%}, {ms:.3f} ms, {size:.0f} KiB")
    print(
        "   (so small a network mostly measures the cost of calls; real ones: docs/performance.md)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
