"""The bench models: ResNet-18/50 and MobileNetV1/V2 in plain torch, with seeded random weights.

Architectures as in He et al. (CVPR 2016; stride in the 3x3 convolution), Howard et al. (2017) and
Sandler et al. (CVPR 2018). torchvision's definitions compute the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nmcompile.sparsity import NM, Dense, OneByN, Pattern, parse_pattern, project


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, with `act`, a ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if act:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """act(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.body(x) + self.shortcut(x))
        return out


def head(features: int, classes: int) -> list[nn.Module]:
    """Mean over the image, and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def residual_stages(
    inputs: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    bottleneck: bool = False,
    first: int = 1,
) -> tuple[list[nn.Module], int]:
    """Stages of a ResNet, and the channels that come out; `first`: stride of the first, else 2."""
    layers: list[nn.Module] = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        outputs = width * 4 if bottleneck else width
        for index in range(count):
            stride = 1 if index else 2 if stage else first
            if bottleneck:
                body = nn.Sequential(
                    conv_bn(inputs, width, 1),
                    conv_bn(width, width, 3, stride),
                    conv_bn(width, outputs, 1, act=False),
                )
            else:
                body = nn.Sequential(
                    conv_bn(inputs, width, 3, stride), conv_bn(width, width, 3, act=False)
                )
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, act=False)
            layers.append(Residual(body, shortcut, nn.ReLU()))
            inputs = outputs
    return layers, inputs


def _resnet(blocks: Sequence[int], bottleneck: bool, classes: int) -> nn.Sequential:
    widths = [64 << stage for stage in range(len(blocks))]
    stages, features = residual_stages(64, widths, blocks, bottleneck)
    stem = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, *head(features, classes))


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18, 1.8 GMAC at 224²."""
    return _resnet((2, 2, 2, 2), False, classes)


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50, 4.1 GMAC at 224²."""
    return _resnet((3, 4, 6, 3), True, classes)


def mobilenet_v1(classes: int = 1000) -> nn.Module:
    """MobileNetV1, 0.57 GMAC at 224²."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2)]
    inputs = 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    for outputs, stride in [*plan, (1024, 2), (1024, 1)]:
        layers += [conv_bn(inputs, inputs, 3, stride, inputs), conv_bn(inputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, *head(inputs, classes))


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """MobileNetV2, 0.3 GMAC at 224²."""

    def relu6(layer: nn.Sequential) -> nn.Sequential:
        layer[2] = nn.ReLU6()
        return layer

    layers: list[nn.Module] = [relu6(conv_bn(3, 32, 3, 2))]
    inputs = 32
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    for expand, outputs, count, first in [*plan, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for index in range(count):
            stride, hidden = first if index == 0 else 1, inputs * expand
            body = [relu6(conv_bn(inputs, hidden, 1))] if expand > 1 else []
            body += [
                relu6(conv_bn(hidden, hidden, 3, stride, hidden)),
                conv_bn(hidden, outputs, 1, act=False),
            ]
            block = nn.Sequential(*body)
            same = stride == 1 and inputs == outputs
            layers.append(Residual(block, nn.Identity(), nn.Identity()) if same else block)
            inputs = outputs
    layers.append(relu6(conv_bn(inputs, 1280, 1)))
    return nn.Sequential(*layers, *head(1280, classes))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded weights and batch norm statistics that keep activations of order one; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                mean, var = module.running_mean, module.running_var
                assert mean is not None and var is not None
                mean.normal_(0, 0.1, generator=generator)
                var.uniform_(0.8, 1.2, generator=generator)
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return model.eval()


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of order one: initial values hide branches (ConvNeXT scales its by 1e-6)."""
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith(("bias", "beta")):
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.ndim == 1 or "layer_scale" in name or ".grn." in name:
                parameter.uniform_(0.5, 1.0, generator=generator)
    return model.eval()


def sparsify(model: nn.Module, spec: str) -> nn.Module:
    """Project every prunable convolution in place: "2:4", "1x16@0.5", "unstructured@0.1", "dense".

    The stem (3 input channels) and depthwise convolutions stay dense, as in the papers; an N:M or
    1xN that does not fit a layer's channels leaves the layer dense too.
    """
    name, _, density = spec.partition("@")
    pattern: Pattern = parse_pattern(name)
    if isinstance(pattern, Dense):
        return model
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.in_channels < 4:
                continue
            if isinstance(pattern, OneByN) and module.out_channels % pattern.n:
                continue
            if isinstance(pattern, NM) and module.in_channels % pattern.m:
                continue
            weight = module.weight.numpy()
            kept = project(weight, pattern, float(density) if density else None)
            # Keep the activations' scale, so that deep random nets neither vanish nor explode.
            scale = (weight**2).sum() / max((kept**2).sum(), 1e-12)
            module.weight.copy_(torch.from_numpy(kept * scale**0.5))
    return model


def build(name: str, spec: str = "dense", seed: int = 0) -> nn.Module:
    """One bench model with random weights of a pattern, in eval mode."""
    return sparsify(randomise(MODELS[name](), seed), spec)
