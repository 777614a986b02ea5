"""Trains by every method, once with the authors' code and once with ours, and compares.

    python -m benchmarks.authors CHECKOUTS            compare, print a table
    python -m benchmarks.authors CHECKOUTS --write    and write the authors' traces for the tests
    python -m benchmarks.authors CHECKOUTS --load     and load what the authors' code saves, down to
                                                      an artifact

CHECKOUTS holds one clone of each repository of `cases.py`, in folders called owner_name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.authors.cases import CASES, Case
from benchmarks.authors.checkouts import commit
from benchmarks.authors.checkpoints import (
    CHECKPOINTS,
    EXAMPLES,
    REARRANGED,
    follow,
    predictions,
    rounded,
    saved,
)
from benchmarks.authors.ours import Ours
from benchmarks.authors.setting import Array, Participant, Trace, float64, save, train
from benchmarks.authors.theirs import PARTICIPANTS, SpReOf

TRACES = Path(__file__).parent.parent.parent / "tests" / "traces"


def checkout_of(case: Case, checkouts: Path) -> Path:
    """Where a repository lies."""
    return checkouts / case.repository.replace("/", "_")


def converted(who: Participant) -> dict[str, Array]:
    """What the authors' conversion script makes of SpRe's branches; it changes the model."""
    found = {}
    if isinstance(who, SpReOf) and not who.asp:
        for name, tensor in who.converted().items():
            found[f"converted {name}"] = tensor.numpy(force=True).astype(np.float32)
    return found


def example(who: Participant, state: dict[str, Tensor], about: str, path: Path) -> None:
    """Write a state of a model of theirs, and what it predicts."""
    logits = predictions(who, state)
    arrays = {name: tensor.numpy(force=True) for name, tensor in state.items()}
    np.savez_compressed(path, about=np.array(about), logits=logits.numpy(), **arrays)  # type: ignore[arg-type]


def show_loaded(checkouts: Path) -> Table:
    """One row for each checkpoint of the authors' code."""
    table = Table("checkpoint", "error", "finalized", "patterns", "artifact")
    for case in (*CHECKPOINTS, REARRANGED):
        with float64():
            who = PARTICIPANTS[case.method](case, checkout_of(case, checkouts))
            train(who)
        done = follow(case, who)
        errors = (f"{done.error:.0e}", f"{done.finalized:.0e}")
        table.add_row(case.name, *errors, ", ".join(done.patterns), f"{done.compiled} bytes")
    return table


def differences(one: Trace, other: Trace) -> tuple[int, int, float]:
    """Bits of masks that differ, of how many, and the largest relative error of a weight's sums."""
    assert one.keys() == other.keys()
    masks = [name for name in one if name.startswith("mask ")]
    bits = sum(int((one[name] != other[name]).sum()) for name in masks)
    error = max(
        float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max())
        for name in one.keys() - set(masks)
    )
    return bits, sum(one[name].size for name in masks), error


def changes(trace: Trace) -> int:
    """Bits of masks that change from one epoch to the next."""
    return sum(
        int((rows[1:] != rows[:-1]).sum())
        for name, rows in trace.items()
        if name.startswith("mask ")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and perhaps write."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.authors", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--load", action="store_true")
    options = parser.parse_args(arguments)
    table = Table("trace", "repository", "changes", "different", "of", "error of weights")
    differ = 0
    for case in CASES:
        with float64():
            who = PARTICIPANTS[case.method](case, checkout_of(case, options.checkouts))
            trace = train(who)
            bits, size, error = differences(trace, train(Ours(case)))
        differ += bits
        row: list[Any] = [case.name, case.repository, changes(trace), bits, size, f"{error:.0e}"]
        table.add_row(*map(str, row))
        if options.write:
            about = json.dumps(
                {
                    "repository": f"https://github.com/{case.repository}",
                    "commit": commit(checkout_of(case, options.checkouts)),
                    "torch": torch.__version__,
                }
            )
            state = rounded(saved(who), case)
            save(TRACES / f"{case.name}.npz", trace, about, converted(who))
            if case in CHECKPOINTS:
                example(who, state, about, EXAMPLES / f"{case.name}.npz")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if options.load:
        Console(width=None if sys.stdout.isatty() else 120).print(show_loaded(options.checkouts))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
