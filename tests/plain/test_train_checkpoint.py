"""Checkpoints in the forms of the public implementations, loaded and compared with their models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmcompile.errors import ModelError
from nmcompile.sparsity import NM
from nmcompile.train import ASP, LBC, SRSTE, SUBP, Method, OneByN, SpRe, load_checkpoint
from nmcompile.train.masks import nm_mask
from tests.support.reader_models import Network
from tests.support.seed_modules import (
    LbcConv,
    SrSteConv,
    SubpConv,
    assert_close,
    randomised,
    run_torch,
)

Layer = Callable[..., nn.Conv2d]


class ShuffledLbc(LbcConv):
    """The combinations in another order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.index_list = self.index_list.flip(0)


class OneByNParameter(nn.Conv2d):
    """1xN: the mask is a parameter of the weight's shape."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep = torch.rand(self.weight.shape[0] // 4, self.weight.shape[1]) < 0.4
        mask = keep.repeat_interleave(4, 0)[:, :, None, None].expand_as(self.weight)
        self.mask = nn.Parameter(mask.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight * self.mask, self.bias)
        return y


PUBLIC: dict[str, tuple[Layer, Callable[[], Method], str]] = {
    "srste": (SrSteConv, lambda: SRSTE("2:4"), "SR-STE or dense"),
    "lbc": (LbcConv, lambda: LBC("2:4", 0, 1), "LBC"),
    "lbc, another order": (ShuffledLbc, lambda: LBC("2:4", 0, 1), "LBC"),
    "subp": (SubpConv, lambda: SUBP("1x8", 0.5), "SUBP or 1xN"),
    "one by n": (OneByNParameter, lambda: OneByN("1x4", 0.4), "SUBP or 1xN"),
}


def public(layer: Layer) -> Network:
    torch.manual_seed(0)
    return randomised(Network(layer))


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def in_a_file(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("form", ["plain", "nested", "module.", "file"])
def test_checkpoint_gives_the_public_model(name: str, form: str, tmp_path: Path) -> None:
    layer, make, recognised = PUBLIC[name]
    expected = public(layer)
    state: Any = expected.state_dict()
    if form in ("module.", "file"):
        state = {f"module.{key}": value for key, value in state.items()}
    if form in ("nested", "file"):
        state = {"epoch": 7, "arch": "net", "state_dict": state}
    if form == "file":
        state = in_a_file(state, tmp_path / "best.pth")
    method = make()
    model = Network()
    report = load_checkpoint(model, state, method)
    assert report.method == recognised
    assert not (report.missing or report.unexpected or report.mismatched)
    assert_close(run_torch(model.eval(), images()), run_torch(expected, images()))
    assert_close(run_torch(method.finalize(model), images()), run_torch(expected, images()))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "srste"])
def test_masks_are_multiplied_into_a_plain_model(name: str) -> None:
    expected = public(PUBLIC[name][0])
    model = Network()
    load_checkpoint(model, expected.state_dict())
    assert_close(run_torch(model.eval(), images()), run_torch(expected, images()))


@pytest.mark.parametrize("name", PUBLIC)
def test_models_of_the_public_code_take_their_own_checkpoints(name: str) -> None:
    layer = PUBLIC[name][0]
    expected = public(layer)
    torch.manual_seed(3)
    model = Network(layer)
    load_checkpoint(model, expected.state_dict())
    assert_close(run_torch(model.eval(), images()), run_torch(expected, images()))


class Bottleneck(nn.Module):
    """As in public SpRe ResNet-50s: one branch, beside conv2; `rep` False is the plain form."""

    def __init__(self, rep: bool) -> None:
        super().__init__()
        conv: Layer = SrSteConv if rep else nn.Conv2d
        self.conv1, self.bn1 = conv(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = conv(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        if rep:
            self.conv_rep = branch()
            self.bn_rep = nn.BatchNorm2d(16)
        self.rep = rep

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.bn2(self.conv2(x))
        if self.rep:
            y = y + self.bn_rep(masked_branch(self.conv2, self.conv_rep, x))
        return functional.relu(y)


class BasicBlock(nn.Module):
    """As in public SpRe ResNet-18s: numbered branches beside both convolutions."""

    def __init__(self, rep: bool) -> None:
        super().__init__()
        conv: Layer = SrSteConv if rep else nn.Conv2d
        self.conv1, self.bn1 = conv(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = conv(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        if rep:
            self.conv_rep1, self.bn_rep1 = branch(), nn.BatchNorm2d(16)
            self.conv_rep2, self.bn_rep2 = branch(), nn.BatchNorm2d(16)
        self.rep = rep

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(x))
        if self.rep:
            y = y + self.bn_rep1(masked_branch(self.conv1, self.conv_rep1, x))
        x = functional.relu(y)
        y = self.bn2(self.conv2(x))
        if self.rep:
            y = y + self.bn_rep2(masked_branch(self.conv2, self.conv_rep2, x))
        return functional.relu(y)


def branch() -> nn.Conv2d:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    conv.register_buffer("mask", (torch.rand(3, 3) < 0.6).float())
    return conv


def masked_branch(conv: nn.Conv2d, rep: nn.Conv2d, x: Tensor) -> Tensor:
    assert isinstance(conv, SrSteConv) and isinstance(rep.mask, Tensor)
    weight = rep.weight * (conv.masked_weight() != 0) * rep.mask
    return functional.conv2d(x, weight, padding=1)


def wrap(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 1), block, nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize("block", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("base", [SRSTE, ASP])
def test_spre_checkpoint_gives_the_public_model(
    block: Callable[[bool], nn.Module], base: Any
) -> None:
    torch.manual_seed(1)
    expected = randomised(wrap(block(True)))
    state = {f"module.{key}": value for key, value in expected.state_dict().items()}
    method = SpRe("2:4", base)
    model = wrap(block(False))
    if base is ASP:  # its masks are in no checkpoint
        with pytest.raises(ModelError, match=r"nothing for .*weight\.0\.mask"):
            load_checkpoint(model, state, method)
        return
    report = load_checkpoint(model, state, method)
    assert report.method == "SpRe over SR-STE or ASP"
    assert_close(run_torch(model.eval(), images()), run_torch(expected, images()))
    assert_close(run_torch(method.finalize(model), images()), run_torch(expected, images()))


def test_what_a_prepared_model_saves_is_a_checkpoint_too() -> None:
    makes: list[Callable[[], Method]] = [entry[1] for entry in PUBLIC.values()]
    makes.append(lambda: SpRe("1:4"))
    for make in makes:
        torch.manual_seed(2)
        expected = make().prepare(randomised(Network()))
        model = Network()
        load_checkpoint(model, expected.state_dict(), make())
        assert_close(run_torch(model.eval(), images()), run_torch(expected.eval(), images()))


def test_keys_that_do_not_fit_are_named_with_the_method() -> None:
    state = dict(public(LbcConv).state_dict())
    state["extra.weight"] = state.pop("fc.bias")
    state["stem.weight"] = torch.zeros(16, 3, 5, 5)
    state["conv2.alpha"] = torch.zeros(3, 6)
    with pytest.raises(ModelError) as error:
        load_checkpoint(Network(), state)
    message = str(error.value)
    assert "the checkpoint (LBC) does not fit Net" in message
    assert "stem.weight: expected shape (16, 3, 3, 3), found (16, 3, 5, 5)" in message
    assert "nothing for stem.weight, fc.bias" in message
    assert "no place for extra.weight" in message
    assert "conv2.alpha: expected 64 groups of 6 scores" in message
    report = load_checkpoint(Network(), state, strict=False)
    assert report.unexpected == ("extra.weight",)
    assert report.missing == ("stem.weight", "fc.bias")
    assert [key for key, _ in report.mismatched] == ["stem.weight", "conv2.alpha"]


def test_mask_that_is_no_block_mask_is_refused() -> None:
    state = dict(public(SubpConv).state_dict())
    state["conv1.mask"] = state["conv1.mask"].clone()
    state["conv1.mask"][0, 0, 0, 0] = 1 - state["conv1.mask"][0, 0, 0, 0]
    with pytest.raises(ModelError, match=r"conv1\.mask: it does not consist of whole 1x8 blocks"):
        load_checkpoint(Network(), state, SUBP("1x8", 0.5))


def test_spre_on_a_plain_model_asks_for_the_method() -> None:
    state = wrap(Bottleneck(True)).state_dict()
    with pytest.raises(ModelError, match=r"\(SpRe over SR-STE or ASP\).*name the method"):
        load_checkpoint(wrap(Bottleneck(False)), state)


class Custom:
    """What weights_only=True refuses."""


def test_unreadable_files_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*missing\.pth"):
        load_checkpoint(Network(), tmp_path / "missing.pth")
    text = tmp_path / "text.pth"
    text.write_text("no checkpoint")
    with pytest.raises(ModelError, match=r"text\.pth: expected a checkpoint of tensors"):
        load_checkpoint(Network(), text)
    objects = tmp_path / "objects.pth"
    torch.save({"model": Custom()}, objects)
    with pytest.raises(ModelError, match=r"objects\.pth: .*save model\.state_dict\(\) alone"):
        load_checkpoint(Network(), objects)
    with pytest.raises(ModelError, match="expected a state dict in the checkpoint, found epoch"):
        load_checkpoint(Network(), {"epoch": 3})


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", PUBLIC)
def test_a_checkpoint_that_does_not_fit_leaves_the_model_as_it_was(kind: str) -> None:
    layer, make, _ = PUBLIC[kind]
    state = dict(public(layer).state_dict())
    del state["fc.bias"]  # the last that is loaded
    for method in (None, make()):
        model = Network()
        before, classes = snapshot(model), [type(module) for module in model.modules()]
        with pytest.raises(ModelError, match=r"nothing for (.*, )?fc\.bias"):
            load_checkpoint(model, state, method)
        assert [type(module) for module in model.modules()] == classes
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_loading_keeps_the_order_of_the_checkpoint() -> None:
    x = torch.zeros(1, 3, 8, 8)
    expected = ASP("2:4", permute=True, example_inputs=x).prepare(randomised(Network()))
    torch.manual_seed(5)
    model, state = randomised(Network()), expected.state_dict()
    # What is missing stays as it is, in the model's own order.
    bias = model.state_dict()["conv2.bias"].clone()
    del state["conv2.bias"]
    load_checkpoint(model, state, ASP("2:4", permute=True, example_inputs=x), strict=False)
    loaded = model.state_dict()
    assert torch.equal(loaded.pop("conv2.bias"), bias)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


class Windows(nn.Sequential):
    """As Swin: with a mask of its attention among the buffers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
        self.register_buffer("attn_mask", torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("added", "method"),
    [
        ({}, "SR-STE or dense"),
        ({"0.weight_mask": torch.ones(8, 8)}, "torch.nn.utils.prune"),
        ({"1.in_proj_weight_mask": torch.ones(24, 8)}, "torch.nn.utils.prune"),
        ({"0.__weight_mma_mask": torch.ones(8, 8)}, "ASP"),
        ({"1.__in_proj_weight_mma_mask": torch.ones(24, 8)}, "ASP"),
    ],
)
def test_only_masks_beside_weights_are_those_of_pruning(
    added: dict[str, Tensor], method: str
) -> None:
    state = Windows().state_dict() | added
    report = load_checkpoint(Windows(), state, strict=False)
    assert report.method == method
    assert set(added) <= set(report.loaded)


class RealMask(nn.Conv2d):
    """MaxQ: the mask is the product of a local one and factors of filters and positions."""

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        local = nm_mask(self.weight.detach(), NM(2, 4)).float()
        shape = self.weight.shape
        factors = 1 + torch.rand(shape[0], 1, 1, 1) + torch.rand(1, 1, *shape[2:])
        self.register_buffer("mask", local * factors)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight * self.mask, self.bias)
        return y


@pytest.mark.parametrize("method", [None, lambda: ASP("2:4")])
def test_masks_of_real_numbers_multiply_the_weight(method: Callable[[], Method] | None) -> None:
    trained = public(RealMask)
    model = Network().eval()
    load_checkpoint(model, trained.state_dict(), method and method())
    assert_close(run_torch(model, images()), run_torch(trained, images()))


def test_masks_that_are_no_numbers_are_refused() -> None:
    state = public(RealMask).state_dict()
    state["conv1.mask"] = state["conv1.mask"] / 0
    with pytest.raises(ModelError, match=r"conv1\.mask: it holds NaN or infinite"):
        load_checkpoint(Network(), state)


@pytest.mark.parametrize("packed", [True, False])
def test_masks_alone_apply_to_the_weights_of_the_model(packed: bool, tmp_path: Path) -> None:
    model = public(nn.Conv2d)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = {
        f"{name}.weight.mask": nm_mask(weights[f"{name}.weight"], NM(2, 4)).numpy()
        for name in ("conv1", "conv2", "fc")
    }
    stored = {key: np.packbits(mask) if packed else mask for key, mask in masks.items()}
    np.savez_compressed(tmp_path / "masks.npz", **stored)  # type: ignore[arg-type]
    report = load_checkpoint(model, tmp_path / "masks.npz")
    assert report.method == "MaskLLM" and set(report.loaded) == set(masks)
    for name, tensor in model.state_dict().items():
        mask = torch.from_numpy(masks[f"{name}.mask"]) if f"{name}.mask" in masks else 1
        assert torch.equal(tensor, weights[name] * mask)


def test_broken_mask_files_are_model_errors(tmp_path: Path) -> None:
    path = tmp_path / "masks.npz"
    for content in (b"", b"no zip", b"PK\x03\x04" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"masks\.npz"):
            load_checkpoint(Network(), path)
