"""How many cores the analytical models count with: those of this process, unless told otherwise."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_assumed: ContextVar[int | None] = ContextVar("assumed cores", default=None)


def cores() -> int:
    """Cores that a model may use: the models weigh one thread against all of them."""
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextlib.contextmanager
def assuming_cores(count: int | None) -> Iterator[None]:
    """Count with those of the machine that a model is compiled for; None for this one."""
    token = _assumed.set(count)
    try:
        yield
    finally:
        _assumed.reset(token)


def cached_per_cores(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """As `functools.lru_cache`, for functions whose result depends on `cores` too."""

    @functools.lru_cache(maxsize=512)
    def cached(count: int, *args: Hashable, **kwargs: Hashable) -> _R:
        return function(*args, **kwargs)  # type: ignore[arg-type]

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return cached(cores(), *args, **kwargs)  # type: ignore[arg-type]

    return call
