"""Runs cases in worker processes, so that a crash or a hang is one finding among others.

python -m tests.fuzz.run {artifacts,models} BASE FIRST COUNT
"""

import collections
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG = 20.0  # seconds
FINE = ("refused", "same", "compiled")


class Worker:
    """A process that checks one case after another; a new one where it died."""

    def __init__(self, kind: str, base: Path) -> None:
        self._command = [sys.executable, "-m", "tests.fuzz.worker", kind, str(base)]
        self._process: subprocess.Popen[str] | None = None

    def check(self, seed: int) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._ask(0, patience=120.0)  # importing is no hang
        return self._ask(seed, HANG)

    def _ask(self, seed: int, patience: float) -> str:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{seed}\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(patience):
                self.end()
                return f"hangs for {patience:g} s"
        line = process.stdout.readline().strip()
        if not line:
            self.end()
            return f"ends with {process.returncode}"
        return line

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def check_all(
    kind: str, base: Path, seeds: Iterable[int], seconds: float = float("inf")
) -> tuple[collections.Counter[str], list[str]]:
    """Check cases for as long as there is time: how many came to what, and what is wrong."""
    worker, end = Worker(kind, base), time.monotonic() + seconds
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    try:
        for seed in seeds:
            if time.monotonic() > end:
                break
            result = worker.check(seed)
            counts[result if result in FINE else "wrong"] += 1
            if result not in FINE:
                wrong.append(f"{seed}: {result}")
                print(wrong[-1], flush=True)
    finally:
        worker.end()
    return counts, wrong


if __name__ == "__main__":
    first, count = int(sys.argv[3]), int(sys.argv[4])
    print(*check_all(sys.argv[1], Path(sys.argv[2]), range(first, first + count)), sep="\n")
