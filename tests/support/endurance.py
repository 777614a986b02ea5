"""Sessions for a long time: what a process has must not grow, and what they answer must be right.

python -m tests.support.endurance ARTIFACT {runs,threads,loads} [AMOUNT]: 8 threads for AMOUNT
seconds, or AMOUNT short-lived threads, or AMOUNT loads; by default 600, 10,000 and 20,000.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.runtime import Session, load
from tests.fuzz.artifacts import inputs_of

SAMPLES = 10
SPARE = {"threads": 8, "mappings": 64, "descriptors": 4, "resident": 24 << 20}
"""What may come and go: pools that end, arenas of the allocator, a library that is loaded."""


@dataclass(frozen=True)
class Held:
    """What this process has: system threads, mappings, file descriptors, bytes of memory."""

    threads: int
    mappings: int
    descriptors: int
    resident: int

    @staticmethod
    def now() -> "Held":
        with open("/proc/self/maps") as maps, open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
            return Held(
                len(os.listdir("/proc/self/task")),
                sum(1 for _ in maps),
                len(os.listdir("/proc/self/fd")),
                pages * os.sysconf("SC_PAGE_SIZE"),
            )

    def grown(self, later: "Held") -> list[str]:
        """What there is more of than may come and go."""
        return [
            f"{name}: {getattr(self, name)} before, {getattr(later, name)} after"
            for name, spare in SPARE.items()
            if getattr(later, name) > getattr(self, name) + spare
        ]


class Check:
    """One input, and the answer that every run must give."""

    def __init__(self, path: Path) -> None:
        with load(path) as session:
            names = [spec.name for spec in session.inputs]
            self.inputs = dict(zip(names, inputs_of(session.manifest), strict=True))
            self.wanted = session.run(self.inputs)

    def run(self, session: Session) -> None:
        found: dict[str, Any] = session.run(self.inputs)
        for name, array in self.wanted.items():
            np.testing.assert_array_equal(found[name], array)


def long_runs(path: Path, seconds: float) -> Iterator[Held]:
    """8 threads that run sessions of one thread and of several."""
    check, stop = Check(path), threading.Event()
    failures: list[BaseException] = []
    with load(path, threads=1) as one, load(path) as many:

        def work(session: Session) -> None:
            try:
                while not stop.is_set():
                    check.run(session)
            except BaseException as error:
                failures.append(error)
                raise

        workers = [threading.Thread(target=work, args=(s,)) for s in (one, many) * 4]
        for worker in workers:
            worker.start()
        try:
            for _ in range(SAMPLES):
                time.sleep(seconds / SAMPLES)
                yield Held.now()
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    assert not failures


def short_threads(path: Path, count: int) -> Iterator[Held]:
    """Threads that run once, with sessions of one thread and of several."""
    check = Check(path)
    with load(path, threads=1) as one, load(path) as many:
        for index in range(count):
            thread = threading.Thread(target=check.run, args=((one, many)[index % 2],))
            thread.start()
            thread.join()
            if index % (count // SAMPLES) == count // SAMPLES - 1:
                yield Held.now()


def loads(path: Path, count: int) -> Iterator[Held]:
    """Sessions that run once in another thread and are closed."""
    check = Check(path)
    for index in range(count):
        with load(path, threads=1 + index % 2) as session:
            thread = threading.Thread(target=check.run, args=(session,))
            thread.start()
            thread.join()
        if index % (count // SAMPLES) == count // SAMPLES - 1:
            yield Held.now()


KINDS: dict[str, tuple[Callable[[Path, int], Iterator[Held]], int]] = {
    "runs": (long_runs, 600),
    "threads": (short_threads, 10_000),
    "loads": (loads, 20_000),
}


def endure(kind: str, path: Path, amount: int) -> list[str]:
    """What has grown between the first and the last sample."""
    samples = []
    begin = time.monotonic()
    for held in KINDS[kind][0](path, amount):
        samples.append(held)
        print(f"{time.monotonic() - begin:6.0f} s  {held}", flush=True)
    return samples[0].grown(samples[-1])


if __name__ == "__main__":
    kind = sys.argv[2]
    amount = int(sys.argv[3]) if len(sys.argv) > 3 else KINDS[kind][1]
    grown = endure(kind, Path(sys.argv[1]), amount)
    print(f"{kind} {amount}:", "; ".join(grown) or "nothing has grown")
    sys.exit(bool(grown))
