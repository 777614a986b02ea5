"""The files that a reader of the documentation has lying about: models, checkpoints, images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from nmcompile.train import SRSTE, SpRe
from tests.support import reader_models
from tests.support.reader_models import Network
from tests.support.seed_modules import LbcConv, SrSteConv, SubpConv, export_onnx, randomised
from tests.support.tiny_models import example, tiny_net

MODULE = "my_models"


def set_desk(folder: Path) -> None:
    """Write them: `model.onnx` (input x, open), my_models.py, checkpoints, images and arrays."""
    proto = export_onnx(tiny_net("2:4"), example((1, 3, 224, 224)))
    for axis, name in enumerate(("N", "", "H", "W")):
        if name:
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    del proto.graph.value_info[:]
    onnx.save(proto, folder / "model.onnx")
    shutil.copy(reader_models.__file__, folder / f"{MODULE}.py")
    _save_checkpoints(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 224, 224, 3), np.uint8)
    (folder / "calibration").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "calibration" / f"{index}.png")
    arrays = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.save(folder / "images.npy", arrays)
    np.save(folder / "image.npy", arrays[:1])
    np.savez(folder / "input.npz", x=arrays[:1])


def readers_values() -> dict[str, object]:
    """What README.md calls `model` and `x`."""
    return {"model": tiny_net("2:4").eval(), "x": example()}


def _save_checkpoints(folder: Path) -> None:
    """One of each method, as their public implementations write it."""
    kinds = {"srste": SrSteConv, "lbc": LbcConv, "subp": SubpConv}
    for name, layer in kinds.items():
        torch.manual_seed(0)
        torch.save(randomised(Network(layer)).state_dict(), folder / f"{name}.pth")
    prepared = SpRe("2:4", SRSTE).prepare(Network())
    torch.save(prepared.state_dict(), folder / "spre.pth")
