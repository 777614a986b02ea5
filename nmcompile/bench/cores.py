"""Whether the cores of a measurement share a cache.

Cores that do hand a cache line over in some 30 ns, others in 150 ns and more, and then two threads
of any engine gain little. A virtual machine's host may move its cores apart and together again
within a minute, so that one sitting would mix the two.
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

APART_NS = 100.0
PAUSE = 2.0  # seconds between two looks while waiting
FRESH = 0.5  # seconds that a look holds: hosts move cores once in a while, and looking is work
PROGRAM = r"""
#include <atomic>
#include <chrono>
#include <cstdio>
#include <pthread.h>
#include <thread>
const int chunks = 20, turns = 5000;
static std::atomic<int> turn{0};
static double best = 1e9;
static void play(int me, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    for (int chunk = 0, i = 0; chunk < chunks; chunk++) {
        auto begin = std::chrono::steady_clock::now();
        for (int end = i + turns; i < end; i++) {
            while (turn.load(std::memory_order_acquire) != 2 * i + me) {}
            turn.store(2 * i + me + 1, std::memory_order_release);
        }
        std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - begin;
        if (me == 0 && passed.count() < best) best = passed.count();
    }
}
int main() {
    cpu_set_t set;
    pthread_getaffinity_np(pthread_self(), sizeof set, &set);
    int first = -1, last = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) { last = cpu; if (first < 0) first = cpu; }
    std::thread other(play, 1, last);
    play(0, first);
    other.join();
    std::printf("%f", best / (2 * turns));
}
"""


@dataclass
class Cores:
    """Looks before rounds, and waits for a while if the cores are apart.

    patience: seconds to wait in all.
    rounds, apart: how many rounds were looked at, and how many had to do with cores apart.
    """

    patience: float
    rounds: int = 0
    apart: int = 0

    def __post_init__(self) -> None:
        """Begin without a look."""
        self._looked, self._together = -math.inf, True

    def wait(self) -> None:
        """Return when the cores are together, or the patience is at its end.

        Without a C++ compiler nobody can tell, and no round waits.
        """
        if compiler() is None:
            return
        self.rounds += 1
        if time.monotonic() - self._looked > FRESH:
            self._together = self._wait_until_together()
            self._looked = time.monotonic()
        self.apart += not self._together

    def _wait_until_together(self) -> bool:
        while handover_ns() > APART_NS:
            if self.patience <= 0:
                return False
            time.sleep(PAUSE)
            self.patience -= PAUSE
        return True


def handover_ns() -> float:
    """Nanoseconds until one thread sees what another has written; on at least two cores."""
    done = subprocess.run([_program()], check=True, capture_output=True, text=True)
    return float(done.stdout)


def compiler() -> str | None:
    """A C++ compiler, if there is one."""
    return shutil.which("g++") or shutil.which("clang++")


@functools.cache
def _program() -> Path:
    """The compiled program, in a folder that goes when Python ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / "handover.cpp"
    source.write_text(PROGRAM)
    program = folder / "handover"
    words = [compiler() or "g++", "-O2", "-pthread", source, "-o", program]
    subprocess.run([str(word) for word in words], check=True)
    return program
