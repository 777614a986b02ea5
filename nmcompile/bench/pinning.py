"""Keeping everything that is measured on the same cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

TASKS = Path("/proc/self/task")


def chosen_cores(count: int) -> list[int]:
    """The last `count` of the cores that this process may use: the first tend to serve interrupts.

    A process of fewer cores gets those.
    """
    return sorted(os.sched_getaffinity(0))[-count:]


@contextlib.contextmanager
def on_cores(count: int, threads: bool = False) -> Iterator[list[int]]:
    """The calling thread, and processes started inside, keep to the same `count` cores.

    Otherwise the scheduler gives a second process another core than ours, and on a shared machine
    a busy neighbour of one core then slows one engine alone, by up to a half. Engines of this
    process have to be made outside: OpenVINO keeps to the cores that it sees first.

    Args:
        count: cores.
        threads: move the other threads of this process too, where they may run elsewhere.

    Yields:
        The cores; none where the system does not allow it, and then everything stays as it was.
    """
    before = os.sched_getaffinity(0)
    cores = chosen_cores(count)
    moved: dict[int, set[int]] = {}
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        yield []
        return
    try:
        if threads:
            moved = _move_threads(set(cores))
        yield cores
    finally:
        os.sched_setaffinity(0, before)
        for task, allowed in moved.items():
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(task, allowed)


def _move_threads(cores: set[int]) -> dict[int, set[int]]:
    """Keep other threads to `cores`; returns where those that were moved could run before."""
    moved = {}
    for entry in TASKS.iterdir():
        task = int(entry.name)
        with contextlib.suppress(OSError):
            allowed = os.sched_getaffinity(task)
            # Those of engines that pin themselves may be inside already, one core each.
            if not allowed <= cores:
                os.sched_setaffinity(task, cores)
                moved[task] = allowed
    return moved
