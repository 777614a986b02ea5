"""The files that a reader of the documentation has lying about: models, checkpoints, images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

from nmcompile.train import SRSTE, SpRe
from tests.support.seed_modules import LbcConv, SrSteConv, SubpConv, export_onnx, randomised
from tests.support.tiny_models import example, tiny_net

MODULE = "my_models"
NETWORK = """\
import torch
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    def __init__(self, layer=nn.Conv2d):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = layer(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = layer(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(functional.relu(self.stem(x)))))
        return self.fc(functional.relu(self.conv2(x)).mean((2, 3)))


network = Network
"""


def set_desk(folder: Path) -> None:
    """Write them: `model.onnx` (input x, open), my_models.py, checkpoints, images and arrays."""
    proto = export_onnx(tiny_net("2:4"), example((1, 3, 224, 224)))
    for axis, name in enumerate(("N", "", "H", "W")):
        if name:
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    del proto.graph.value_info[:]
    onnx.save(proto, folder / "model.onnx")
    (folder / f"{MODULE}.py").write_text(NETWORK)
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
    made: dict[str, object] = {}
    exec(NETWORK, made)
    network: type[nn.Module] = made["Network"]  # type: ignore[assignment]
    kinds = {"srste": SrSteConv, "lbc": LbcConv, "subp": SubpConv}
    for name, layer in kinds.items():
        torch.manual_seed(0)
        torch.save(randomised(network(layer)).state_dict(), folder / f"{name}.pth")
    prepared = SpRe("2:4", SRSTE).prepare(network())
    torch.save(prepared.state_dict(), folder / "spre.pth")
