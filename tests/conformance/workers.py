"""Tests in processes of their own, so that one that dies or hangs is a verdict and not the end."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.conformance.cases import Case
from tests.conformance.judge import FOREIGN, Verdict, judge

PATIENCE = 120.0
"""Seconds without any verdict after which the tests at work are given up."""


def judge_all(cases: Sequence[Case], processes: int = 0) -> Iterator[tuple[Case, Verdict]]:
    """Verdicts on all cases, as they come.

    Args:
        cases: what to compile and run.
        processes: how many at a time; 0 for the cores that there are.
    """
    # Forked before anything starts threads here, children have the cases without reading them.
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(cases))
    running: dict[Connection, tuple[Any, Case]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, cases), daemon=True)
        process.start()
        theirs.close()
        give(ours, process)

    def give(pipe: Connection, process: Any) -> None:
        if not waiting:
            pipe.send(None)
            process.join()
            return
        case = waiting.pop()
        running[pipe] = (process, case)
        pipe.send(cases.index(case))

    for _ in range(min(processes or len(os.sched_getaffinity(0)), len(cases))):
        start()
    while running:
        ready = wait(list(running), timeout=PATIENCE) or list(running)
        for pipe in ready:
            assert isinstance(pipe, Connection)
            process, case = running.pop(pipe)
            try:
                verdict = pipe.recv() if pipe.poll() else None
            except EOFError:
                verdict = None
            if verdict is None:
                process.kill()
                process.join()
                yield case, Verdict(FOREIGN, f"the process ended with {process.exitcode}")
                if waiting:
                    start()
            else:
                yield case, verdict
                give(pipe, process)


def _work(pipe: Connection, cases: Sequence[Case]) -> None:
    # TVM's compiler and onnx write to stderr what they raise as well.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    while (index := pipe.recv()) is not None:
        pipe.send(judge(cases[index]))
