"""The time of every kernel call of a run, measured where the virtual machine reports its calls."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nmcompile.runtime.cuda import Cuda
from nmcompile.runtime.specs import Call

Times = list[tuple[str, float]]
"""Symbol and milliseconds of every call of one run."""

_MOST_AHEAD = 64  # runs


@dataclass(frozen=True)
class LayerTime:
    """Time of one kernel call: its layer, the kernel's function, median milliseconds."""

    layer: str
    symbol: str
    ms: float


class Clock(Protocol):
    """What marks points in time between calls.

    fresh: whether a virtual machine reports its calls in its first run only.
    """

    fresh: bool

    def prepare(self, launch_ms: float) -> None:
        """Called before each run; launching the one before it took `launch_ms` of the CPU."""

    def paused(self) -> bool:
        """Whether the calls that are reported do not run now."""

    def mark(self) -> Any:
        """This point in time."""

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds from one to the other, once the run is over."""


class HostClock:
    """The CPU's."""

    fresh = False

    def prepare(self, launch_ms: float) -> None:
        """Nothing."""

    def paused(self) -> bool:
        """Never."""
        return False

    def mark(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def between(self, begin: float, end: float) -> float:
        """See `Clock`."""
        return (end - begin) * 1e3


class GpuClock:
    """CUDA events on the stream of the run.

    Kernels are launched one by one, as they are in the first run of a virtual machine, before their
    launches are captured in a CUDA graph. Whole runs are launched ahead of it, so that the GPU has
    always something to do and no kernel waits for its launch between its two events.
    """

    fresh = True

    def __init__(
        self, cuda: Cuda, stream: int, here: Callable[[], int], run: Callable[[], None]
    ) -> None:
        """Measure on `stream`, which `here()` is except during a capture; `run()` launches one."""
        self._cuda, self._stream, self._here, self._run = cuda, stream, here, run
        self._run_ms = 0.0

    def prepare(self, launch_ms: float) -> None:
        """Give the GPU as much to do as the CPU takes to launch a run."""
        if not self._run_ms:
            self._run()  # captures the graph, which later runs launch
            begin = self._cuda.record(self._stream)
            self._run()
            self._run_ms = self._read(begin, self._cuda.record(self._stream)) or math.inf
        for _ in range(min(_MOST_AHEAD, 1 + math.ceil(launch_ms / self._run_ms))):
            self._run()

    def paused(self) -> bool:
        """While a graph is captured, on a stream of its own, nothing runs."""
        return self._here() != self._stream

    def mark(self) -> Any:
        """An event."""
        return self._cuda.record(self._stream)

    def between(self, begin: Any, end: Any) -> float:
        """See `Clock`."""
        return self._read(begin, end)

    def _read(self, begin: Any, end: Any) -> float:
        milliseconds = self._cuda.elapsed_ms(begin, end)
        self._cuda.forget(begin)
        self._cuda.forget(end)
        return milliseconds


class Recorder:
    """Called by the VM before and after each call; collects [symbol, begin, end] in order."""

    def __init__(self, clock: Clock) -> None:
        self.calls: list[list[Any]] = []
        self._clock = clock
        self._open: list[list[Any] | None] = []

    def __call__(self, function: Any, symbol: str, before: bool, *rest: Any) -> int:
        """See the class; returns 0: go on with the call."""
        if self._clock.paused():
            return 0
        # Allocation, checks, views.
        ours = not symbol.startswith(("vm.builtin.", "runtime."))
        if before:
            call: list[Any] | None = None
            if ours:
                call = [symbol, None, None]
                self.calls.append(call)
            self._open.append(call)
            if call is not None:
                call[1] = self._clock.mark()
            return 0
        end = self._clock.mark() if ours else None
        call = self._open.pop()
        if call is not None:
            call[2] = end
            if call is not self.calls[-1]:
                # Others came in between: a function of the VM's, whose kernels are the layers.
                self.calls = [other for other in self.calls if other is not call]
        return 0

    def times(self) -> list[tuple[str, float]]:
        """Symbol and milliseconds of the calls since the last time."""
        calls, self.calls = self.calls, []
        return [(symbol, self._clock.between(begin, end)) for symbol, begin, end in calls]


def record_runs(
    machine: Callable[[], Any], entry: str, arguments: Sequence[Any], repeats: int, clock: Clock
) -> Iterator[Times]:
    """Run the function `entry` of new virtual machines; symbols and milliseconds of each run.

    The first run is not among them: it warms up.
    """
    recorder = Recorder(clock)
    used: Any = None
    launch_ms = 0.0
    for index in range(repeats + 1):
        if used is None or clock.fresh:
            used = None  # gives its memory back before the next one takes some
            used = machine()
            used["set_instrument"](recorder)
        clock.prepare(launch_ms)
        begin = time.perf_counter()
        used[entry](*arguments)
        launch_ms = (time.perf_counter() - begin) * 1e3
        times = recorder.times()
        if index:
            yield times


def medians(runs: Sequence[Sequence[tuple[str, float]]]) -> list[LayerTime]:
    """The calls of several runs, whose layers are not known yet."""
    return [
        LayerTime("", calls[0][0], statistics.median(ms for _, ms in calls))
        for calls in zip(*runs, strict=True)
    ]


def name_layers(times: Sequence[LayerTime], calls: Sequence[Call]) -> list[LayerTime]:
    """Give each timed call its layer: by position where the symbols agree, else by symbol."""
    if [time.symbol for time in times] == [call.symbol for call in calls]:
        layers = [call.layer for call in calls]
    else:
        owners: dict[str, set[str]] = {}
        for call in calls:
            owners.setdefault(call.symbol, set()).add(call.layer)
        layers = [
            owners[time.symbol].copy().pop() if len(owners.get(time.symbol, ())) == 1 else ""
            for time in times
        ]
    return [
        LayerTime(layer or time.symbol, time.symbol, time.ms)
        for layer, time in zip(layers, times, strict=True)
    ]
