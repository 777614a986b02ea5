"""Which thread a library runs in.

TVM's pool belongs to the thread that calls a library: it is made with the first call and ends with
the thread, which takes tenths of a second of a core. So a run on one thread happens where it is
called, without a pool. One on several happens there in the main thread only, whose one pool lives
as long as the process: TVM has nothing that ends or shrinks it (`threading::ResetThreadPool` makes
as many threads anew), and to hand every run to a worker would add 13 us to it. Other threads do
hand it to workers: as many as have room on the machine, shared by all sessions that use so many
threads, and gone soon after the last of these.
"""

import atexit
import os
import threading
import time
import weakref
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from nmcompile.errors import DeviceError
from nmcompile.runtime.native import NativeRuntime, available_threads, native_runtime

LINGER = 1.0  # seconds that a worker waits for another session
_PATIENCE = 5.0  # seconds that the end of the process waits for runs that were left alone

_guard = threading.RLock()  # a finalizer of a session may come in between
_crews: dict[int, "Crew"] = {}
_inside: set[int] = set()  # threads that are within TVM
_home: int | None = threading.main_thread().ident  # None in a forked child, whose pool is lost
_stuck = ""  # why nothing can run in this process


@contextmanager
def inside() -> Iterator[None]:
    """Call TVM within it.

    Raises:
        DeviceError: this process was forked while another thread was inside.
    """
    me = _enter()
    try:
        yield
    finally:
        _inside.discard(me)


def run_here(native: NativeRuntime, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a library in this thread, without a pool.

    Raises:
        DeviceError: as `inside`.
    """
    me = _enter()
    native.set_concurrency(1)
    try:
        return call(*arguments)
    finally:
        native.set_concurrency(0)  # what the environment says
        _inside.discard(me)


class Crew:
    """Workers whose pools have `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._native = native_runtime()
        self._sessions = 0
        self._start()

    def _start(self) -> None:
        self._idle: list[_Worker] = []
        self._made = 0
        self._waiting = 0
        self._change = threading.Condition(_guard)

    def enlist(self, session: object) -> Callable[[], object]:
        """Keep the workers for a session, until what is returned is called or it is gone."""
        with _guard:
            self._sessions += 1
        leave = weakref.finalize(session, self._leave)
        leave.atexit = False
        return leave

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a library on `threads` threads; what it raises is raised here.

        Raises:
            DeviceError: as `inside`.
        """
        me = _enter()
        try:
            if me == _home:
                self._native.set_concurrency(max(available_threads(), self.threads))
                try:
                    if self._native.use_threads(self.threads):
                        return call(*arguments)
                finally:
                    self._native.set_concurrency(0)
            job = _Job(call, arguments)
            self._take().jobs.put(job)
            return job.result()
        finally:
            _inside.discard(me)

    def _take(self) -> "_Worker":
        """A worker with nothing to do, a new one where there is room for it."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._change:
            self._waiting += 1
            try:
                while not self._idle:
                    if self._made < max(1, available_threads() // self.threads):
                        worker = _Worker(self)
                        self._made += 1
                        return worker
                    self._change.wait()
                return self._idle.pop()
            finally:
                self._waiting -= 1

    def give_back(self, worker: "_Worker") -> None:
        """A worker has nothing to do any more."""
        self._idle.append(worker)
        if self._waiting:
            with self._change:
                self._change.notify_all()
        if not self._sessions:
            worker.jobs.put(None)

    def dismiss(self, worker: "_Worker") -> bool:
        """Whether a worker may end: no session wants it, and nobody has taken it."""
        with self._change:
            if self._sessions or worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._made -= 1
            return True

    def _leave(self) -> None:
        with _guard:
            self._sessions -= 1
            if not self._sessions:
                for worker in self._idle:
                    worker.jobs.put(None)

    def settle(self, until: float) -> None:
        """Wait, up to a point in time of `time.monotonic`, until no worker is at work."""
        with self._change:
            while len(self._idle) < self._made and (room := until - time.monotonic()) > 0:
                self._waiting += 1
                self._change.wait(room)
                self._waiting -= 1

    def forget(self) -> None:
        """The workers are another process's."""
        self._start()


class _Job:
    """A call for a worker, and what came of it."""

    __slots__ = ("_arguments", "_call", "_done", "_error", "_value")

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._call, self._arguments = call, arguments
        self._value: Any = None
        self._error: BaseException | None = None
        # Each has its own: whoever is interrupted leaves it, and it wakes nobody else later.
        self._done = allocate_lock()
        self._done.acquire()

    def work(self) -> None:
        """In the worker."""
        try:
            self._value = self._call(*self._arguments)
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """In the worker, once it is free for another job."""
        self._done.release()

    def result(self) -> Any:
        """In the thread that called."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class _Worker:
    """A thread with a pool. None among its jobs: end, unless another comes soon."""

    def __init__(self, crew: Crew) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._crew = crew
        threading.Thread(target=self._work, name="nmcompile", daemon=True).start()

    def _work(self) -> None:
        native = native_runtime()
        native.set_concurrency(self._crew.threads)
        native.use_threads(self._crew.threads)
        patience: float | None = None
        while True:
            try:
                job = self.jobs.get(timeout=patience)
            except Empty:
                if self._crew.dismiss(self):
                    return
                patience = None
                continue
            patience = LINGER if job is None else None
            if job is not None:
                job.work()
                self._crew.give_back(self)
                job.finish()
            del job  # and with it arrays of the caller


def crew_of(threads: int) -> Crew:
    """The crew of this process whose pools have so many threads."""
    with _guard:
        crew = _crews.get(threads)
        if crew is None:
            crew = _crews[threads] = Crew(threads)
        return crew


def _enter() -> int:
    if _stuck:
        raise DeviceError(_stuck)
    me = threading.get_ident()
    _inside.add(me)
    return me


def _settle() -> None:
    until = time.monotonic() + _PATIENCE
    for crew in list(_crews.values()):
        crew.settle(until)


def _forked() -> None:
    """In a child there is the thread that forked, and neither workers nor threads of pools."""
    global _guard, _home, _stuck
    _guard, _home = threading.RLock(), None
    if _inside - {threading.get_ident()}:
        _stuck = (
            f"process {os.getpid()} was forked while another thread was running or loading a "
            "model, and has inherited locks that nobody opens any more: fork before threads run "
            "models, or start processes with the method 'spawn'"
        )
    _inside.clear()
    for crew in _crews.values():
        crew.forget()


atexit.register(_settle)
os.register_at_fork(after_in_child=_forked)
