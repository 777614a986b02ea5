"""Fashion-MNIST: the images, and the network that learns them.

70,000 grey images of 28 x 28, ten kinds of clothes (Xiao et al., arXiv:1708.07747). MIT licence,
Zalando SE. Debian ships the four files in the package `dataset-fashion-mnist` (30 MB).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import conv_bn, head, residual_stages
from benchmarks.training import shift
from nmcompile.errors import InputError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
# Of what is in the files, not of the files: packers compress it differently.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MEAN, DEVIATION = 0.2860, 0.3530  # of the images to train, scaled to 0..1
SIZE = 28
SHIFT = 1  # pixels that an image may move each way
WIDTHS = (16, 32, 64)
BLOCKS = (2, 2, 2)


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 28, 28), scaled to mean 0 and deviation 1, and their classes."""

    images: Tensor
    labels: Tensor

    def part(self, start: int, stop: int | None = None) -> Split:
        """Some of them."""
        return Split(self.images[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Data:
    """The two parts that everybody compares on."""

    train: Split
    test: Split


def read(folder: Path = FOLDER) -> Data:
    """Read and check the four files.

    Raises:
        InputError: one is missing, or has other contents.
    """
    train, test = ("train", "t10k")
    return Data(_split(folder, train), _split(folder, test))


def _split(folder: Path, name: str) -> Split:
    pixels = _read(folder, f"{name}-images-idx3-ubyte")[16:]
    labels = _read(folder, f"{name}-labels-idx1-ubyte")[8:]
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).astype(np.float32))
    images = (images / 255 - MEAN) / DEVIATION
    classes = torch.from_numpy(np.frombuffer(labels, np.uint8).astype(np.int64))
    return Split(images.reshape(-1, 1, SIZE, SIZE), classes)


def _read(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.gz"
    try:
        found = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: expected the four files of Fashion-MNIST; on Debian, "
            "`apt-get install dataset-fashion-mnist` as root, or `apt-get download "
            "dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb there` and "
            "`--data there/usr/share/datasets/fashion-mnist`"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected a file of Fashion-MNIST, install it again"
        ) from error
    digest = hashlib.sha256(found).hexdigest()
    if digest != DIGESTS[name]:
        raise InputError(
            f"{path}: expected contents with the SHA-256 {DIGESTS[name]}, found {digest}; install "
            "it again"
        )
    return found


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `SHIFT` pixels each way, half of them mirrored."""
    return shift(images, generator, SHIFT, -MEAN / DEVIATION, mirror=True)


def network() -> nn.Module:
    """A ResNet-14: as He et al.'s for CIFAR-10 with two blocks a stage, on a quarter of the pixels.

    The stem halves the images, the stages have 16, 32 and 64 channels: 1:16 and 1x16 fit each of
    the twelve 3x3 convolutions.
    """
    stages, features = residual_stages(WIDTHS[0], WIDTHS, BLOCKS)
    layers = [conv_bn(1, WIDTHS[0], 3, stride=2), *stages, *head(features, 10)]
    model = nn.Sequential(*layers)
    # A third faster to train on CPUs than in the other order.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
