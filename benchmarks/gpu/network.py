"""ResNet-50 in torch, its batch norms folded, with the weights that the kit's seeds give.

Peers so get the folded network too, which spares torch eager 53 kernels.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.gpu.data import network_arrays
from benchmarks.models import resnet50


def build(pattern: str) -> nn.Module:
    """In eval mode, float32."""
    model = resnet50()
    for block in list(model.modules()):
        if isinstance(block, nn.Sequential) and len(block) > 1:
            conv, norm = block[0], block[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.bias = nn.Parameter(torch.empty(conv.out_channels))
                block[1] = nn.Identity()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            weight, bias = network_arrays(index, tuple(layer.weight.shape), pattern)
            layer.weight.copy_(torch.from_numpy(weight))
            assert layer.bias is not None
            layer.bias.copy_(torch.from_numpy(bias))
    return model.eval()
