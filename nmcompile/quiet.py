"""Keeps what libraries log from native code off the standard error stream."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOGGED = re.compile(rb"\[\d\d:\d\d:\d\d\] .*: (Debug|Info|Warning): ")  # as TVM begins a line
_STDERR = 2

_guard = threading.Lock()
_inside = 0
_streams = (-1, -1)  # the stream that was there, and the file that is there meanwhile


@contextmanager
def quiet() -> Iterator[None]:
    """Drop lines of TVM's log; whatever else is written within comes out at the end.

    With NMC_DEBUG in the environment everything comes out at once.
    """
    if os.environ.get("NMC_DEBUG"):
        yield
        return
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _inside, _streams
    with _guard:
        _inside += 1
        if _inside == 1:
            try:
                _streams = os.dup(_STDERR), os.memfd_create("stderr")
            except OSError:  # there is no such stream
                _streams = (-1, -1)
                return
            os.dup2(_streams[1], _STDERR)


def _end() -> None:
    global _inside
    with _guard:
        _inside -= 1
        before, meanwhile = _streams
        if _inside or before < 0:
            return
        os.dup2(before, _STDERR)
        os.lseek(meanwhile, 0, os.SEEK_SET)
        with os.fdopen(meanwhile, "rb") as file, suppress(OSError):
            for line in file:
                if not _LOGGED.match(line):
                    os.write(before, line)
        os.close(before)
