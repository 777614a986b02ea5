"""Images as networks of images take them: of one size, in channels, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError

Array = npt.NDArray[Any]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
CROP = 0.875  # of the shorter side, as in the usual evaluation: 224 of 256


@dataclass(frozen=True)
class Normalisation:
    """What is taken from pixels of 0 to 1, and what they are then divided by.

    Each is one number for all channels, or one per channel.

    Raises:
        InputError: a deviation is not above zero.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 < number < np.inf for number in self.deviation):
            raise InputError(
                f"the standard deviation of images is {self.deviation}: expected numbers above 0"
            )


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = Normalisation((0.0,), (1.0,))


def usual_normalisation(channels: int) -> Normalisation:
    """ImageNet's for colours; pixels of 0 to 1 as they are for grey images."""
    return IMAGENET if channels == 3 else PIXELS


def check_images(
    path: Path, shape: Sequence[int], normalisation: Normalisation | None = None
) -> None:
    """Make sure that a network takes images, and that they can be read here.

    Args:
        path: where they are, for messages.
        shape: of the network's input.
        normalisation: what is to be done to them.

    Raises:
        InputError: it is not (N, 3, H, W) or (N, 1, H, W), the normalisation is for another number
            of channels, or Pillow is missing.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: reading images needs Pillow, which is not installed: pip install pillow, or "
            "give a .npz of arrays"
        ) from error
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InputError(
            f"{path}: expected a model of RGB images (N, 3, H, W) or grey ones (N, 1, H, W), found "
            f"the input {tuple(shape)}; give a .npz of arrays"
        )
    if normalisation is None:
        return
    for numbers in (normalisation.mean, normalisation.deviation):
        if len(numbers) not in (1, shape[1]):
            raise InputError(
                f"{path}: the normalisation of images has {len(numbers)} numbers {numbers}: "
                f"expected 1, or one for each of {shape[1]} channels"
            )


def read_image(
    file: Path, shape: Sequence[int], normalisation: Normalisation | None = None
) -> Array:
    """Read one image: scaled so that a crop is its middle, the crop normalised.

    Args:
        file: in a format that Pillow reads.
        shape: (channels, height, width); 3 channels are RGB, one is grey.
        normalisation: None for `usual_normalisation`.

    Returns:
        float32 of `shape`.

    Raises:
        InputError: it is no image.
    """
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(file) as image:
            pixels = _cropped(image.convert("RGB" if channels == 3 else "L"), height, width)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no image that Pillow can read: remove it") from error
    normalisation = normalisation or usual_normalisation(channels)
    mean, deviation = (
        np.array(numbers, np.float32) for numbers in (normalisation.mean, normalisation.deviation)
    )
    normal: Array = (pixels.reshape(height, width, channels) - mean) / deviation
    return normal.transpose(2, 0, 1)


def _cropped(image: Any, height: int, width: int) -> Array:
    scale = max(height / CROP / image.height, width / CROP / image.width)
    size = (max(round(image.width * scale), width), max(round(image.height * scale), height))
    scaled = image.resize(size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(scaled.crop((left, top, left + width, top + height)), np.float32) / 255
