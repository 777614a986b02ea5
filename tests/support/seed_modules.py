"""Training-form modules of the methods whose models we deploy, in the shape of public code."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

from tests.support.peer import by_peer

M = TypeVar("M", bound=nn.Module)
Array = npt.NDArray[Any]


class _StraightThrough(torch.autograd.Function):
    """SR-STE: the n largest of every m along the input channel, gradients passed on."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, n: int, m: int) -> Tensor:
        order = weight.detach().abs().permute(0, 2, 3, 1)
        groups = order.reshape(-1, m)
        index = torch.argsort(groups, dim=1)[:, : m - n]
        mask = torch.ones(groups.shape, device=weight.device)
        mask = mask.scatter_(dim=1, index=index, value=0)
        mask = mask.reshape(order.shape).permute(0, 3, 1, 2)
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        return grad + 2e-4 * (1 - mask) * weight, None, None


class SrSteConv(nn.Conv2d):
    """N:M from scratch (Zhou et al., ICLR 2021)."""

    def __init__(self, *args: Any, n: int = 2, m: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n, self.m = n, m

    def masked_weight(self) -> Tensor:
        masked: Any = _StraightThrough.apply
        weight: Tensor = masked(self.weight, self.n, self.m)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.masked_weight(), self.bias)
        return y


class SpReConv(nn.Module):
    """Spatial re-parameterization (Zhang et al., TPAMI 2025): two normalised branches, summed.

    `outside` drops the (w1' != 0) mask of the second branch, so that it leaves the pattern.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        n: int = 2,
        m: int = 4,
        *,
        outside: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SrSteConv(inputs, outputs, 3, stride, 1, bias=False, n=n, m=m)
        self.bn = nn.BatchNorm2d(outputs)
        self.conv_rep = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv_rep.register_buffer("mask", torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]]))
        self.bn_rep = nn.BatchNorm2d(outputs)
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv.masked_weight()
        mask = self.conv_rep.mask
        assert isinstance(mask, Tensor)
        second = self.conv_rep.weight * mask
        if not self.outside:
            second = second * torch.abs(torch.sign(main))
        conv = self.conv
        y = functional.conv2d(x, main, None, conv.stride, conv.padding)
        z = functional.conv2d(x, second, None, conv.stride, conv.padding)
        total: Tensor = self.bn(y) + self.bn_rep(z)
        return total


class LbcConv(nn.Conv2d):
    """Learning best combination (Zhang et al., NeurIPS 2022): scores choose one mask per group."""

    index_list: Tensor

    def __init__(self, *args: Any, n: int = 2, m: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("index_list", _combinations(n, m))
        self.alpha = nn.Parameter(_chosen(self.weight.numel() // m, len(self.index_list)))

    def forward(self, x: Tensor) -> Tensor:
        o, i, h, w = self.weight.shape
        mask = (self.alpha @ self.index_list).reshape(o, h, w, i).permute(0, 3, 1, 2)
        # 0/1 in the forward pass, with the gradient of the scores.
        mask = mask / torch.where(mask == 0, torch.ones_like(mask), mask)
        y: Tensor = self._conv_forward(x, self.weight * mask, self.bias)
        return y


class SrSteLinear(nn.Linear):
    """The same of a matrix product: groups run along the flattened weight."""

    def __init__(self, inputs: int, outputs: int, n: int = 2, m: int = 4) -> None:
        super().__init__(inputs, outputs)
        self.n, self.m = n, m

    def forward(self, x: Tensor) -> Tensor:
        masked: Any = _StraightThrough.apply
        weight = masked(self.weight[:, :, None, None], self.n, self.m)[:, :, 0, 0]
        return functional.linear(x, weight, self.bias)


class LbcLinear(nn.Linear):
    """LBC of a matrix product, as in its authors' DeiT."""

    def __init__(self, inputs: int, outputs: int, n: int = 2, m: int = 4) -> None:
        super().__init__(inputs, outputs)
        self.index_list = nn.Parameter(_combinations(n, m), requires_grad=False)
        self.alpha = nn.Parameter(_chosen(self.weight.numel() // m, len(self.index_list)))

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.alpha @ self.index_list).reshape(self.weight.shape)
        mask = mask / torch.where(mask == 0, torch.ones_like(mask), mask)
        return functional.linear(x, self.weight * mask, self.bias)


def _combinations(n: int, m: int) -> Tensor:
    """One row of m zeros and ones for each choice of n."""
    chosen = list(itertools.combinations(range(m), n))
    table = torch.zeros(len(chosen), m)
    for row, columns in enumerate(chosen):
        table[row, list(columns)] = 1
    return table


def _chosen(groups: int, combinations: int) -> Tensor:
    """Scores after training, when exactly one of every group is left."""
    alpha = torch.zeros(groups, combinations)
    alpha[torch.arange(groups), torch.randint(combinations, (groups,))] = 0.3
    return alpha


class SubpConv(nn.Conv2d):
    """Soft uniform block pruning (Xiang et al., NeurIPS 2023): a mask of 1xN blocks."""

    mask: Tensor

    def __init__(self, *args: Any, block: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        o, i = self.weight.shape[:2]
        scores = self.weight.detach().abs().sum((2, 3)).reshape(o // block, block, i).sum(1)
        keep = torch.zeros_like(scores).scatter_(1, scores.topk(i - i // 2, dim=1).indices, 1.0)
        mask = keep.repeat_interleave(block, 0)[:, :, None, None].expand_as(self.weight)
        self.register_buffer("mask", mask.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight * self.mask, self.bias)
        return y


class _Halve(nn.Module):
    """A parametrization that zeroes every second input channel."""

    def forward(self, weight: Tensor) -> Tensor:
        keep = torch.arange(weight.shape[1]) % 2 == 0
        return weight * keep[None, :, None, None]


def pruned_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution with the hooks of torch.nn.utils.prune still on."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    cast(Any, prune.ln_structured)(conv, "weight", amount=0.5, n=1, dim=1)
    return conv


def parametrized_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution whose weight is a torch parametrization."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    parametrize.register_parametrization(conv, "weight", _Halve())
    return conv


class RepVggBlock(nn.Module):
    """3x3 + BN, 1x1 + BN and, where shapes allow, BN of the input (Ding et al., CVPR 2021)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.large = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        self.bn_large = nn.BatchNorm2d(outputs)
        self.small = nn.Conv2d(inputs, outputs, 1, stride, 0, groups=groups, bias=False)
        self.bn_small = nn.BatchNorm2d(outputs)
        self.bn_identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn_large(self.large(x)) + self.bn_small(self.small(x))
        return y if self.bn_identity is None else y + self.bn_identity(x)


class SpReBasicBlock(nn.Module):
    """A ResNet basic block with a SpRe branch beside both convolutions."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, outside: bool = False
    ) -> None:
        super().__init__()
        self.first = SpReConv(inputs, outputs, stride, outside=outside)
        self.second = SpReConv(outputs, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = SrSteConv(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


class SeedNet(nn.Module):
    """A small residual network with one layer of every method; input (N, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.layer1 = nn.Sequential(SpReBasicBlock(16, 16), SpReBasicBlock(16, 32, 2))
        self.lbc = nn.Sequential(LbcConv(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.subp = nn.Sequential(SubpConv(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.pruned = pruned_conv(32, 32, 3)
        self.parametrized = parametrized_conv(32, 32, 1)
        self.rep = RepVggBlock(32, 32)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subp(self.lbc(self.layer1(self.stem(x))))
        x = functional.relu(self.rep(self.parametrized(functional.relu(self.pruned(x)))))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


def randomised(model: M, seed: int = 0) -> M:
    """Evaluation mode, with batch norm statistics that are not the neutral ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor, low, high in _ranges(module):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def _ranges(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Sequence[tuple[Tensor, float, float]]:
    assert norm.running_mean is not None and norm.running_var is not None
    return [
        (norm.running_mean, -0.5, 0.5),
        (norm.running_var, 0.5, 2.0),
        (norm.weight, 0.5, 1.5),
        (norm.bias, -0.5, 0.5),
    ]


def export_onnx(model: nn.Module, x: Tensor, *, dynamo: bool = False) -> onnx.ModelProto:
    """The model as torch's exporters write it, with input x and output y."""
    stream: Any = io.BytesIO()  # torch writes to it, whatever its annotation says
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(
                model, (x,), input_names=["x"], output_names=["y"], dynamo=True, verbose=False
            )
            assert program is not None
            proto: onnx.ModelProto = program.model_proto
            return proto
        torch.onnx.export(
            model,
            (x,),
            stream,
            input_names=["x"],
            output_names=["y"],
            dynamo=False,
            opset_version=17,
        )
    return onnx.load_model_from_string(stream.getvalue())


def run_torch(model: nn.Module, x: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(x))


def run_onnx(proto: onnx.ModelProto, x: Tensor) -> Array:
    return by_peer(proto, {"x": x.numpy()})[0]


def assert_close(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    """Equal to a share of the range of the expected values."""
    assert found.shape == expected.shape
    scale = max(float(np.ptp(expected)), 1e-3)
    assert float(np.abs(found - expected).max()) <= tolerance * scale
