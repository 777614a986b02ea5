"""State dicts out of what training scripts save."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmcompile.errors import ModelError

State = dict[str, Tensor]
NESTED = ("state_dict", "model_state_dict", "model", "net")  # what holds the tensors, first found
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def tensors_of(source: str | os.PathLike[str] | Mapping[str, Any]) -> State:
    """The tensors of a checkpoint by their plain names.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    found: Any = source
    if not isinstance(source, Mapping):
        try:
            found = _read(Path(source))
        except OSError as error:
            raise ModelError(f"cannot read {source}: {error.strerror or error}") from error
        except (
            *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise ModelError(
                f"{source}: expected a checkpoint of tensors, found something else "
                f"({str(error).splitlines()[0]}); in the environment that wrote it, save "
                "model.state_dict() alone"
            ) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(v, Tensor) for v in found.values()):
        shown = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ModelError(f"expected a state dict in the checkpoint, found {shown or 'nothing'}")
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read(path: Path) -> Any:
    """What a file holds."""
    if path.suffix != ".npz":
        # Training scripts save their arguments beside the weights: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
