"""`torch.ops.nmcompile.run`: a compiled part of a model as an operator of torch's.

It is what stands in a graph for the part, so that torch.export saves and loads such graphs as any
other; the artifact stays a file of its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nmcompile.runtime import Session, load

NAME = "nmcompile::run"

_open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
_kept: dict[str, Session] = {}
_guard = threading.Lock()


def open_session(name: str, artifact: str | os.PathLike[str], threads: int) -> Session:
    """The session that `run` finds under a name, for as long as somebody holds it.

    Args:
        name: of what is in the artifact: graphs with equal parts share them.
        artifact: loaded where no session has the name.
        threads: cores that a run uses.

    Raises:
        ArtifactError: there is no such file, or it is no artifact.
        DeviceError: this machine cannot run it.
    """
    with _guard:
        found = _open.get(name)
        if found is None:
            found = _open[name] = load(artifact, threads)
        return found


def session_of(name: str) -> Session:
    """The session of a name; where none has it, that of the artifact at this path, for good.

    Raises:
        ArtifactError: there is no such file, or it is no artifact.
        DeviceError: this machine cannot run it.
    """
    found = _open.get(name)
    if found is None:
        found = _kept[name] = open_session(name, name, torch.get_num_threads())
    return found


def _run(inputs: Sequence[torch.Tensor], artifact: str) -> list[torch.Tensor]:
    session = session_of(artifact)
    names = (spec.name for spec in session.inputs)
    found = session.run(dict(zip(names, inputs, strict=True)))
    return [_tensor(found[spec.name]) for spec in session.outputs]


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Over the same memory."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _shapes(inputs: Sequence[torch.Tensor], artifact: str) -> list[torch.Tensor]:
    """What `run` returns, without its contents."""
    return [
        torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in session_of(artifact).outputs
    ]


torch.library.define(NAME, "(Tensor[] inputs, str artifact) -> Tensor[]")
torch.library.impl(NAME, "CPU")(_run)
torch.library.register_fake(NAME)(_shapes)

RUN: Any = torch.ops.nmcompile.run.default
"""The operator, as it stands in graphs."""
