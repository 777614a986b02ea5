"""Compares the training methods on Fashion-MNIST; stops and goes on wherever it was.

    python -m benchmarks.fashion --workers 2
    python -m benchmarks.fashion --only 'dense,*1:16'
    python -m benchmarks.fashion --also mine.py:recipes

Every finished run is a line of the results file, and the page beside it is written anew. Runs that
are there are not made again. `--also` adds recipes that a function without arguments returns, a
list of `benchmarks.recipes.Recipe`, from a module or a Python file: that is how other code of the
same methods is compared. What `make(epochs, seed, **settings)` of a recipe returns needs four
functions, which are called as ours are (`nmcompile.train.method`): `prepare(model)` returns the
model to train, `on_epoch(epoch, epochs)` and `on_step()` come before every epoch and every forward
pass, and `finalize(model)` returns the model to judge. Parameters with one dimension do not decay.
The authors' own code is such a module: `--also benchmarks.authors.recipes:recipes`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.fashion.images import FOLDER
from benchmarks.fashion.jobs import Budget, Outcome, Plan
from benchmarks.fashion.page import write_page
from benchmarks.fashion.results import Results
from benchmarks.fashion.rows import find_recipes
from benchmarks.fashion.runs import Bench
from benchmarks.fashion.workers import Setup, run_in_workers
from nmcompile.errors import NmcompileError

OUTPUT = Path(__file__).parents[1] / "results" / "accuracy_fashion.jsonl"
STARTS = Path("out") / "fashion"

SMALL = Budget(images=2 * 640, searched=640, epoch=320, validation=500, rates=(0.05, 0.1))


def _here(plan: Plan, results: Results, bench: Bench) -> Iterator[Outcome]:
    while (job := next(plan.ready(results.done), None)) is not None:
        yield bench.run(plan.task(job, results.done))


def work(plan: Plan, whole: Plan, results: Results, setup: Setup, workers: int) -> None:
    """Make the runs of `plan` that are missing, and the page of `whole` after each."""
    console = Console(stderr=True, highlight=False)
    bench = setup.open()  # refuses what is missing before workers do
    if workers == 1:
        made = _here(plan, results, bench)
    else:
        made = run_in_workers(plan, results, setup, workers)
    for outcome in made:
        results.add(outcome)
        write_page(whole, results)
        missing = sum(job not in results.done for job in plan.jobs)
        left = (plan.seconds_left(results.done) or 0) / workers / 60
        job = outcome.job
        console.print(
            f"{job.recipe}, {job.stage} {job.number}: {outcome.accuracy:.2%} in "
            f"{outcome.seconds:.0f} s; {missing} runs are left, about {left:.0f} minutes",
            soft_wrap=True,
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fashion", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=_names, default=[], help="rows by name, or wildcards: a,b*")
    parser.add_argument("--also", action="append", default=[], metavar="FILE.py:FUNCTION")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the four files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--starts", type=Path, default=STARTS, help="folder of dense models")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument(
        "--small", action="store_true", help="a budget that only shows that it runs"
    )
    parser.add_argument("--page", action="store_true", help="write the page only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, and write the page."""
    options = _parser().parse_args(arguments)
    budget = SMALL if options.small else Budget()
    try:
        plan = Plan(find_recipes(options.also, options.only), options.seeds, budget)
        whole = Plan(find_recipes(options.also, ()), options.seeds, budget)
        results = Results(options.output, budget)
        setup = Setup(options.also, options.data, budget, options.starts, options.threads)
        if not options.page:
            work(plan, whole, results, setup, options.workers)
        write_page(whole, results)
    except NmcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; finished runs are in {options.output}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
