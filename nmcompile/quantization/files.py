"""Calibration data in files: folders of images or arrays, and archives of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError
from nmcompile.images import SUFFIXES, Normalisation, check_images, read_image

Array = npt.NDArray[Any]
InputSpec = tuple[str, tuple[int, ...], str]
Items = Iterator[tuple[str, Mapping[str, Any]]]
"""Where an item is from, for messages, and its arrays by input."""

LABELS = "labels"
"""The array of an archive that holds one class per sample."""
BENCH = ("x", "y")
"""The arrays that `nmc bench --data` reads: they fit a model of one input here, too."""

ARRAYS = ".npy"
EXPECTED = f"{', '.join(SUFFIXES)} images, or {ARRAYS} files"


def read_folder(
    path: Path, specs: Sequence[InputSpec], limit: int, normalisation: Normalisation | None
) -> tuple[Items, Array | None]:
    """The files of a folder, and their labels where they are in one subfolder per class.

    Raises:
        InputError: it holds no such files, others, or the model has several inputs.
    """
    if len(specs) != 1:
        raise InputError(
            f"{path}: expected a model of one input for a folder of files, found "
            f"{', '.join(name for name, _, _ in specs)}; give a .npz with an array for each"
        )
    ((name, shape, _),) = specs
    files, classes = _list(path)
    if files[0].suffix.lower() == ARRAYS:
        arrays = [(str(file), _load(file)) for file in files]
        rank = len(shape)
        counts = [
            len(array) if array.ndim == rank else array.shape[0] * shape[0] if array.ndim > rank
            else 1
            for _, array in arrays
        ]  # fmt: skip
        labels = None if classes is None else np.repeat(classes, counts)
        return iter([(where, {name: array}) for where, array in arrays]), labels
    check_images(path, shape, normalisation)
    picked = np.unique(np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int))
    read = (
        (str(files[at]), {name: read_image(files[at], shape[1:], normalisation)}) for at in picked
    )
    return read, None if classes is None else classes[picked]


def read_archive(path: Path, specs: Sequence[InputSpec]) -> tuple[Items, Array | None]:
    """The arrays of a `.npz`, and its labels if it has them; or the array of a `.npy`.

    Raises:
        InputError: it is neither.
    """
    if path.suffix.lower() == ARRAYS and len(specs) == 1 and path.is_file():
        return iter([(str(path), {specs[0][0]: _load(path)})]), None
    try:
        if not path.is_file() or path.suffix.lower() != ".npz":
            raise ValueError("no such folder or .npz file" if not path.exists() else "no .npz file")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib and numpy have exceptions of their own
        raise InputError(
            f"cannot read {path}: {error}; expected a folder of {EXPECTED}, or a .npz with an "
            "array for each input"
        ) from error
    names = [name for name, _, _ in specs]
    if len(names) == 1 and set(arrays) == set(BENCH) and "y" not in names:
        arrays = {names[0]: arrays["x"], LABELS: arrays["y"]}
    labels = None if LABELS in names else arrays.pop(LABELS, None)
    return iter([(str(path), arrays)]), labels


def _list(path: Path) -> tuple[list[Path], Array | None]:
    """The files of a folder, and the class of each."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not _hidden(entry))
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and not _hidden(entry))
    classes: list[int] | None = None
    if folders and not files:
        found = [
            (file, label)
            for label, folder in enumerate(folders)
            for file in sorted(folder.iterdir())
            if not _hidden(file)
        ]
        files, classes = [file for file, _ in found], [label for _, label in found]
    elif folders:
        raise InputError(
            f"{path}: expected files, or one subfolder of files per class, found both: "
            f"{files[0].name} and {folders[0].name}; move one of them away"
        )
    if not files:
        raise InputError(f"{path} is empty: expected {EXPECTED}")
    kinds = Counter("image" if f.suffix.lower() in SUFFIXES else f.suffix.lower() for f in files)
    others = [file for file in files if file.suffix.lower() not in (*SUFFIXES, ARRAYS)]
    if others:
        raise InputError(f"{others[0]}: expected {EXPECTED}, found {others[0].name}; move it away")
    if len(kinds) > 1:
        raise InputError(f"{path}: expected {EXPECTED}, found both; move one kind away")
    return files, None if classes is None else np.array(classes)


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _load(file: Path) -> Array:
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy's own are of several kinds
        raise InputError(f"{file} is no .npy file of numbers: {error}; write it again") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{file}: expected a .npy file, found an archive; call it .npz")
    return array
