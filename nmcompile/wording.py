"""How messages call what a user can change, by option or argument, and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_OPTIONS: ContextVar[Collection[str] | None] = ContextVar("options of the command", default=None)


@contextmanager
def speaking(options: Collection[str]) -> Iterator[None]:
    """Within a command of the command line: call things by its options (`--shape`, ...)."""
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def way(option: str, argument: str) -> str:
    """What to write, in the words of the user's interface.

    Args:
        option: options with their values, as `--enforce --density 0.5`. Of several, those that
            the running command has; a plural of its own (`--targets`) stands for a singular. Where
            it has none, they are those of `nmc compile`.
        argument: the same in Python, as `pruning=Pruning(density=0.5)`.
    """
    options = _OPTIONS.get()
    if options is None:
        return argument
    known = []
    for piece in re.split(r" (?=--)", option):
        name = re.match(r"[-\w]*", piece)[0]  # type: ignore[index] # matches anything
        own = next((word for word in (name, f"{name}s") if word in options), None)
        known += [own + piece[len(name) :]] if own is not None else []
    return " ".join(known) or f"`nmc compile {option}`"


def spell_shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    """Shapes of inputs by name, as ``x=1,3,224,224``."""
    return " ".join(f"{name}={','.join(map(str, dims))}" for name, dims in shapes.items())
