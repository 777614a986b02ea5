"""What the engines are fed: random inputs, or labelled images from a folder or a .npz file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError
from nmcompile.images import SUFFIXES, check_images, read_image

Array = npt.NDArray[Any]
InputSpec = tuple[str, tuple[int, ...], str]

RANDOM = 4  # images for the agreement of engines where there is no data


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of whole batches.

    batches: the inputs of each, by name; the last may be filled up with its last image.
    count: images without the filling.
    labels: one per image, or None.
    """

    batches: list[dict[str, Array]]
    count: int
    labels: Array | None = None


def random_inputs(specs: Sequence[InputSpec], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs: normal where the dtype is a float, zeros (a legal index) elsewhere."""
    from nmcompile.runtime.specs import numpy_dtype

    random = np.random.default_rng(seed)
    inputs = {}
    for name, shape, dtype in specs:
        values = random.standard_normal(shape) if "float" in dtype else 0
        inputs[name] = np.full(shape, values).astype(numpy_dtype(dtype))
    return inputs


def random_samples(specs: Sequence[InputSpec], batch: int) -> Samples:
    """Some images, at least one batch of them."""
    count = max(1, -(-RANDOM // batch))
    return Samples([random_inputs(specs, seed) for seed in range(count)], count * batch)


def read_samples(path: Path, specs: Sequence[InputSpec], limit: int) -> Samples:
    """Labelled images for a model of one input.

    Args:
        path: a `.npz` with arrays x (N, ...) and y (N,), or a folder of one subfolder of images
            per class; classes are numbered in the order of their sorted names. Images become RGB,
            are scaled and cropped to the model's size in the middle, and normalised with
            ImageNet's mean and deviation.
        specs: the model's inputs.
        limit: the most images to take, spread evenly over all.

    Raises:
        InputError: there is no such file, it is none of both, or does not fit the model.
    """
    if len(specs) != 1:
        raise InputError(
            f"{path}: expected a model of one input for labelled images, found "
            f"{', '.join(name for name, _, _ in specs)}; leave the data out"
        )
    ((name, shape, dtype),) = specs
    if path.is_dir():
        images, labels = _from_folder(path, shape, limit)
    else:
        images, labels = _from_npz(path, shape, limit)
    return Samples(list(_batches(name, images.astype(dtype), shape[0])), len(images), labels)


def check_labels(path: Path, samples: Samples, classes: int) -> None:
    """Make sure that the labels are classes of the model.

    Raises:
        InputError: they are not.
    """
    if samples.labels is None or not len(samples.labels):
        return
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{path}: expected labels from 0 to {classes - 1}, the model's classes, found {low} to "
            f"{high}; number the classes as in training"
        )


def _from_npz(path: Path, shape: Sequence[int], limit: int) -> tuple[Array, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y") if key in file}
            found = ", ".join(file.files)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is no .npz file"
        raise InputError(
            f"cannot read {path}: {why}; expected a .npz of x and y, or a folder of one subfolder "
            "of images per class"
        ) from error
    if set(arrays) != {"x", "y"}:
        raise InputError(f"{path}: expected the arrays x (images) and y (labels), found {found}")
    x, y = arrays["x"], arrays["y"]
    if y.ndim != 1 or len(x) != len(y) or not len(y) or not np.issubdtype(y.dtype, np.integer):
        raise InputError(
            f"{path}: expected one whole number in y for each image of x, found x {x.shape} and y "
            f"{y.shape} of {y.dtype}"
        )
    if x.shape[1:] != tuple(shape[1:]):
        raise InputError(
            f"{path}: expected images of {tuple(shape[1:])}, which the model takes, found "
            f"{x.shape[1:]}"
        )
    picked = _spread(len(x), limit)
    return x[picked], y[picked]


def _from_folder(path: Path, shape: Sequence[int], limit: int) -> tuple[Array, Array]:
    check_images(path, shape)
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise InputError(
            f"{path}: expected one subfolder per class with {', '.join(SUFFIXES)} images, found "
            f"{len(classes)} subfolders without any"
        )
    picked = [files[index] for index in _spread(len(files), limit)]
    images = [read_image(file, shape[1:]) for file, _ in picked]
    return np.stack(images), np.array([label for _, label in picked])


def _spread(count: int, limit: int) -> Array:
    """Indices of at most `limit` of `count`, evenly, because files are sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def _batches(name: str, images: Array, batch: int) -> Iterator[dict[str, Array]]:
    for at in range(0, len(images), batch):
        part = images[at : at + batch]
        filling = np.repeat(part[-1:], batch - len(part), axis=0)
        yield {name: np.ascontiguousarray(np.concatenate([part, filling]))}
