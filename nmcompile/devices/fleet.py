"""Runs jobs on all devices of a key: TVM's tracker hands out the devices, we watch over the jobs.

Every attempt at a job waits in the tracker's queue for a device, sends its files, calls the device,
and fetches what it left. A device that dies or takes too long costs that attempt only: it is told
of, and the job tries another one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmcompile.devices.server import CALL
from nmcompile.devices.tracker import Address, connect_tracker, request_device, summarise
from nmcompile.errors import DeviceError

TICK = 0.5  # seconds between two looks at attempts that may be stuck
GRACE = 2.0  # seconds that a device has to end an overdue session itself
CONNECT = 10.0  # seconds that it has to answer at all
WAITING = 2  # attempts per device: one at work, one that waits for it to be free


@dataclass(frozen=True, eq=False)
class Job:
    """One request to a device.

    name: for messages.
    request: a JSON object for the handler of the device.
    files: sent before, by the name that the request uses.
    results: fetched afterwards, by the name that the request uses.
    """

    name: str
    request: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    results: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An attempt that came to nothing, and will be repeated on another device if any are left.

    device: its name, "" where the job never had one.
    """

    device: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    response: what the handler answered, None if there is none: then `error` says why.
    device: which answered.
    began, ended: on the clock `time.monotonic`, of the attempt that counts: from when it had its
        device.
    failures: attempts before it.
    """

    job: Job
    response: Mapping[str, Any] | None
    error: str | None
    device: str
    began: float
    ended: float
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """The devices of a key, and how long to bear with them.

    tracker, key: where they are registered, and as what.
    timeout_s: for one job, its files included.
    attempts: how often a job is tried where devices fail.
    """

    tracker: Address
    key: str
    timeout_s: float = 600.0
    attempts: int = 3

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        """As `run_jobs`."""
        return run_jobs(
            self.tracker, self.key, jobs, timeout=self.timeout_s, attempts=self.attempts
        )


def run_jobs(
    tracker: Address,
    key: str,
    jobs: Iterable[Job],
    *,
    timeout: float = 600.0,
    attempts: int = 3,
    patience: float = 10.0,
) -> Generator[Outcome]:
    """Run jobs on the devices of a key, and yield each outcome as it comes.

    Args:
        tracker: where the devices are registered.
        key: the kind of device, as given to `nmc device serve --key`.
        jobs: any number; the tracker serves them first come, first served. They are asked for one
            by one, so that they can be made while others run.
        timeout: seconds that a device may take for one job, files included.
        attempts: how often a job is tried before it is given up.
        patience: seconds to go on waiting where no device of the key is registered any more.

    Raises:
        DeviceError: there is no such tracker, or no device of the key.
    """
    watch = connect_tracker(tracker)
    run = _Run(watch, tracker, key, timeout, attempts, patience)
    if not run.count():
        known = ", ".join(d.key for d in summarise(watch.summary()) if d.servers) or "none"
        watch.close()
        raise DeviceError(
            f"the tracker at {tracker} has no device with the key {key!r}, its keys: {known}; "
            "start one with `nmc device serve --tracker --key`"
        )
    return run.outcomes(jobs)


@dataclass(eq=False)
class _Attempt:
    """One attempt, in a thread of its own; a thread that hangs is left behind.

    device: set once the tracker has named one, at `began`; `connected` once that has answered.
    queued: its connection to the tracker.
    """

    job: Job
    failures: tuple[Failure, ...] = ()
    device: str = ""
    began: float | None = None
    connected: bool = False
    queued: Any = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Leave the tracker's queue, and do nothing more."""
        self.cancelled = True
        socket_ = self.queued and self.queued._sock
        if socket_:
            with contextlib.suppress(OSError):
                socket_.shutdown(socket.SHUT_RDWR)  # closing would not wake its thread


_Result = Outcome | Failure


@dataclass
class _Run:
    """The jobs of one call of `run_jobs`."""

    watch: Any
    tracker: Address
    key: str
    timeout: float
    attempts: int
    patience: float
    running: set[_Attempt] = field(default_factory=set)
    done: queue.SimpleQueue[tuple[_Attempt, _Result]] = field(default_factory=queue.SimpleQueue)

    def outcomes(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        new = iter(jobs)
        again, more = deque[_Attempt](), True
        alone: float | None = None  # since when no device is left
        devices = self.count()
        try:
            while more or again or self.running:
                room = len(self.running) < WAITING * max(devices, 1)
                if room and again:
                    self._start(again.popleft())
                elif room and more:
                    job = next(new, None)
                    more = job is not None
                    if job is not None:
                        self._start(_Attempt(job))
                # Making a job may take long: what came back meanwhile does not wait for the next.
                for attempt, result in self._ended(wait=not room or not (again or more)):
                    self.running.remove(attempt)
                    if isinstance(result, Outcome):
                        yield result
                        continue
                    retry = _Attempt(attempt.job, (*attempt.failures, result))
                    if len(retry.failures) < self.attempts:
                        again.append(retry)
                    else:
                        yield _given_up(retry, f"gave up after {self.attempts} attempts")
                devices = self.count()
                if devices:
                    alone = None
                elif alone is None:
                    alone = time.monotonic()
                elif time.monotonic() - alone > self.patience:
                    for attempt in itertools.chain(self.running, again, map(_Attempt, new)):
                        yield _given_up(attempt, f"no device with the key {self.key!r} is left")
                    return
        finally:
            self.watch.close()
            for attempt in self.running:
                attempt.cancel()

    def count(self) -> int:
        """How many devices of the key are registered, busy or free."""
        try:
            summary = self.watch.summary()
        except (RuntimeError, OSError):
            return 0
        return sum(
            len(devices.servers) for devices in summarise(summary) if devices.key == self.key
        )

    def _ended(self, wait: bool) -> list[tuple[_Attempt, _Result]]:
        """What has come back by the next tick, and attempts that a device should have ended."""
        try:
            attempt, result = self.done.get(timeout=TICK) if wait else self.done.get_nowait()
            # One that was overdue may still answer.
            return [(attempt, result)] if attempt in self.running else []
        except queue.Empty:
            now = time.monotonic()
            return [
                (attempt, Failure(attempt.device, f"no answer for {now - attempt.began:.0f} s"))
                for attempt in self.running
                if attempt.began is not None and now - attempt.began > self._limit(attempt)
            ]

    def _limit(self, attempt: _Attempt) -> float:
        """Seconds after which a device that has not ended an attempt itself is taken for stuck."""
        return self.timeout + GRACE if attempt.connected else CONNECT

    def _start(self, attempt: _Attempt) -> None:
        self.running.add(attempt)
        threading.Thread(target=self._attempt, args=(attempt,), daemon=True).start()

    def _attempt(self, attempt: _Attempt) -> None:
        """In a thread of its own: wait for a device, and do the job there."""
        from tvm import rpc

        result: _Result
        try:
            attempt.queued = connect_tracker(self.tracker)
            host, port, matchkey = request_device(attempt.queued, self.key)
            if attempt.cancelled:
                return
            attempt.device, attempt.began = f"{host}:{port}", time.monotonic()
            device = rpc.connect(host, port, matchkey, self.timeout)
            attempt.connected = True
            result = _do(attempt, device)
        except DeviceError as error:
            result = Failure(attempt.device, str(error))
        except (RuntimeError, OSError) as error:
            result = Failure(attempt.device, _reason(error, self.timeout))
        finally:
            if attempt.queued is not None:
                attempt.queued.close()
        self.done.put((attempt, result))


def _given_up(attempt: _Attempt, reason: str) -> Outcome:
    now = time.monotonic()
    if attempt.failures:
        last = attempt.failures[-1]
        reason += f"; the last one, on {last.device or 'no device'}: {last.reason}"
    return Outcome(attempt.job, None, reason, "", now, now, attempt.failures)


def _do(attempt: _Attempt, device: Any) -> Outcome:
    assert attempt.began is not None
    job = attempt.job
    for name, path in job.files.items():
        device.upload(bytearray(path.read_bytes()), name)
    answer = json.loads(device.get_function(CALL)(json.dumps(dict(job.request))))
    if "error" not in answer:
        for name, path in job.results.items():
            path.write_bytes(bytes(device.download(name)))
    return Outcome(
        job,
        answer.get("response"),
        answer.get("error"),
        attempt.device,
        attempt.began,
        time.monotonic(),
        attempt.failures,
    )


def _reason(error: Exception, timeout: float) -> str:
    """What TVM's exception means."""
    if "RPCSessionTimeoutError" in str(error):
        return f"the job took more than {timeout:g} s"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the connection broke ({lines[-1][:200]})"
