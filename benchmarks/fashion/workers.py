"""Runs of the benchmark in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.fashion.images import read
from benchmarks.fashion.jobs import Budget, Job, Outcome, Plan, Task
from benchmarks.fashion.results import Results
from benchmarks.fashion.rows import find_recipes
from benchmarks.fashion.runs import Bench


@dataclass(frozen=True)
class Setup:
    """What a process needs to make runs."""

    also: Sequence[str]
    data: Path
    budget: Budget
    starts: Path
    threads: int

    def open(self) -> Bench:
        """Read the images, and set the threads of this process.

        Raises:
            InputError: as `find_recipes` and `read`.
        """
        torch.set_num_threads(self.threads)
        recipes = {recipe.name: recipe for recipe in find_recipes(self.also, ())}
        return Bench(recipes, read(self.data), self.budget, self.starts)


_bench: Bench | None = None  # of a worker


def _open_in_worker(setup: Setup) -> None:
    global _bench
    _bench = setup.open()


def _run_in_worker(task: Task) -> Outcome:
    assert _bench is not None
    return _bench.run(task)


def run_in_workers(plan: Plan, results: Results, setup: Setup, workers: int) -> Iterator[Outcome]:
    """Make the runs of `plan` that are missing, `workers` at a time.

    Raises:
        InputError: as `Setup.open`, and what a run raises, after those beside it have ended.
    """
    # Spawned: what a fork has of torch's threads does not run.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_worker, (setup,)) as pool:
        running: dict[Future[Outcome], Job] = {}
        failed: BaseException | None = None
        while True:
            for job in plan.ready(results.done):
                if failed is None and len(running) < workers and job not in running.values():
                    task = plan.task(job, results.done)
                    running[pool.submit(_run_in_worker, task)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                if (error := future.exception()) is None:
                    yield future.result()
                failed = failed or error
        if failed is not None:  # but what the other workers were at is kept
            raise failed
