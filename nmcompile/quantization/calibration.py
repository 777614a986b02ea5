"""Calibration data: what a network is shown so that the ranges of its activations are known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError
from nmcompile.images import Normalisation
from nmcompile.quantization.files import LABELS, read_archive, read_folder

Array = npt.NDArray[Any]
InputSpec = tuple[str, tuple[int, ...], str]

HELD_OUT = 4
"""Of this many samples one is kept from calibration, to measure on."""
ENOUGH = 2 * HELD_OUT
"""Samples from which on some are held out."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Samples for all inputs of a model.

    arrays: by input, (samples, ...); a sample is one slice of the batch, or all of the inputs where
        they do not share their first dimension.
    batch: samples in one run; 0 where a sample is all of the inputs.
    labels: (samples,) of classes, or None.
    """

    arrays: Mapping[str, Array]
    batch: int
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self) -> Iterator[tuple[dict[str, Array], int]]:
        """The inputs of each run, the last filled up with its last sample, and how many count."""
        step = self.batch or 1
        for at in range(0, len(self), step):
            parts = {name: array[at : at + step] for name, array in self.arrays.items()}
            count = len(next(iter(parts.values())))
            if not self.batch:
                yield {name: part[0] for name, part in parts.items()}, count
                continue
            yield {name: _filled(part, step) for name, part in parts.items()}, count

    def take(self, picked: Sequence[int] | Array) -> Calibration:
        """Some of the samples."""
        arrays = {name: array[picked] for name, array in self.arrays.items()}
        labels = None if self.labels is None else self.labels[picked]
        return Calibration(arrays, self.batch, labels)

    def split(self) -> tuple[Calibration, Calibration]:
        """What to calibrate with, and what to measure on: the same where there is little."""
        if len(self) < ENOUGH:
            return self, self
        held = np.arange(len(self)) % HELD_OUT == HELD_OUT - 1
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))


def read_calibration(
    data: Any,
    specs: Sequence[InputSpec],
    limit: int,
    normalisation: Normalisation | None = None,
) -> Calibration:
    """Read calibration data for a model.

    Args:
        data: a folder of images or of `.npy` files, or of one subfolder of them per class; a
            `.npz` of one array per input, and of `labels` if it has them; a mapping of such arrays;
            an iterable of samples or batches, each an array for a model of one input, a mapping by
            input, or a sequence in the order of the inputs. The first axis of arrays is that of the
            samples; an array may also be one sample without it, or a stack of batches.
        specs: name, shape and numpy dtype name of the model's inputs.
        limit: the most samples to take.
        normalisation: of images.

    Raises:
        InputError: there is no data, it does not fit the model, or it is not numbers.
    """
    if limit < 1:
        raise InputError(f"the number of calibration samples is {limit}: expected at least 1")
    batch = _batch_of(specs)
    labels: Array | None = None
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.is_dir():
            items, labels = read_folder(path, specs, limit, normalisation)
        else:
            items, labels = read_archive(path, specs)
    elif isinstance(data, Mapping):
        items = iter([("the calibration data", {k: v for k, v in data.items() if k != LABELS})])
        labels = None if LABELS not in data else np.asarray(data[LABELS])
    elif isinstance(data, Iterable):
        items = _items_of(data, specs)
    else:
        raise InputError(
            f"the calibration data is a {type(data).__name__}: expected a folder, a .npz file, or "
            "an iterable of arrays"
        )
    parts: list[dict[str, Array]] = []
    # Iterables may be endless, and every item holds a sample at least.
    whole = isinstance(data, str | os.PathLike | Mapping)
    for where, item in items if whole else islice(items, limit):
        parts.append(_checked(where, item, specs, batch))
    if not parts:
        raise InputError(
            "the calibration data is empty: expected at least one sample, and better a hundred"
        )
    arrays = {name: np.concatenate([part[name] for part in parts]) for name, _, _ in specs}
    found = Calibration(arrays, batch, labels)
    if labels is not None:
        _check_labels(labels, len(found))
    if len(found) <= limit:
        return found
    picked = np.linspace(0, len(found) - 1, limit).round().astype(int)
    return found.take(np.unique(picked) if whole else np.arange(limit))


def _batch_of(specs: Sequence[InputSpec]) -> int:
    """The first dimension that all inputs share; 0 where they share none."""
    if not specs:
        raise InputError("the model has no inputs: there is nothing to calibrate")
    sizes = {shape[0] if shape else 0 for _, shape, _ in specs}
    return sizes.pop() if len(sizes) == 1 else 0


def _items_of(
    data: Iterable[Any], specs: Sequence[InputSpec]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The items of an iterable by input; an array counts as its rows' one item."""
    names = [name for name, _, _ in specs]
    if hasattr(data, "__array__"):  # numpy arrays and tensors: all samples in one
        data = [data]
    for index, item in enumerate(data):
        where = f"calibration item {index}"
        if isinstance(item, Mapping):
            yield where, item
        elif hasattr(item, "__array__"):
            if len(names) > 1:
                raise InputError(
                    f"{where} is one array, and the model has the inputs {', '.join(names)}: "
                    "expected a mapping of arrays by input"
                )
            yield where, {names[0]: item}
        elif isinstance(item, Sequence) and len(item) == len(names) and not isinstance(item, str):
            yield where, dict(zip(names, item, strict=True))
        else:
            raise InputError(
                f"{where} is a {type(item).__name__}: expected an array, a mapping of arrays by "
                f"input, or a sequence of {len(names)}, for {', '.join(names)}"
            )


def _checked(
    where: str, item: Mapping[str, Any], specs: Sequence[InputSpec], batch: int
) -> dict[str, Array]:
    """One item as samples of every input, or the reason why it is none."""
    names = [name for name, _, _ in specs]
    unknown, missing = [n for n in item if n not in names], [n for n in names if n not in item]
    if unknown or missing:
        raise InputError(
            f"{where}: expected arrays for the inputs {', '.join(names)}, found "
            f"{', '.join(map(str, item)) or 'none'}; name them as `nmc inspect` and the model do"
        )
    found = {name: _samples(where, item[name], (name, s, d), batch) for name, s, d in specs}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        spelled = ", ".join(f"{count} for {name}" for name, count in counts.items())
        raise InputError(f"{where}: expected as many samples for each input, found {spelled}")
    return found


def _samples(where: str, value: Any, spec: InputSpec, batch: int) -> Array:
    from nmcompile.runtime.specs import numpy_dtype

    name, shape, dtype = spec
    where = f"{where}, input {name}" if where else f"input {name}"
    try:
        array = np.asarray(value)
    except Exception as error:  # tensors of other libraries have reasons of their own
        raise InputError(f"{where}: cannot be read as an array: {error}") from error
    wanted, floats = np.dtype(numpy_dtype(dtype)), "float" in dtype
    if array.dtype.kind not in ("f" if floats else "iub"):
        raise InputError(
            f"{where}: expected {dtype}, found {array.dtype}; give the numbers as the model takes "
            "them, normalised as in training"
        )
    shaped = _by_sample(array, shape, batch)
    if shaped is None:
        sample = shape[1:] if batch else shape
        raise InputError(
            f"{where}: expected samples of the shape {tuple(sample)}, or arrays of them, found "
            f"{array.shape}"
        )
    if not shaped.size:
        raise InputError(f"{where}: expected at least one sample, found an array of none")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        converted: Array = np.ascontiguousarray(shaped.astype(wanted))
    if floats and not np.isfinite(converted).all():
        at = np.argwhere(~np.isfinite(converted))[0]
        raise InputError(
            f"{where}: expected finite numbers, found {converted[tuple(at)]} in sample {at[0]}; "
            "leave that sample out or mend it"
        )
    return converted


def _by_sample(array: Array, shape: Sequence[int], batch: int) -> Array | None:
    """(samples, ...) of one input; None where an array fits in no way."""
    shape = tuple(shape)
    if not batch:
        if array.shape == shape:
            return array[None]
        return array if array.shape[1:] == shape and array.ndim else None
    sample = shape[1:]
    if array.shape == sample:
        return array[None]
    if array.ndim == len(shape) and array.shape[1:] == sample:
        return array
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return array.reshape(-1, *sample)
    return None


def _check_labels(labels: Array, count: int) -> None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"the labels of the calibration data: expected one whole number for each of {count} "
            f"samples, found {labels.dtype} of the shape {labels.shape}"
        )


def _filled(part: Array, size: int) -> Array:
    filling = np.repeat(part[-1:], size - len(part), axis=0)
    return np.ascontiguousarray(np.concatenate([part, filling]))
