"""Training methods as a user drives them, and what `finalize` leaves."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile import runtime
from nmcompile.errors import PatternError
from nmcompile.sparsity import check, parse_pattern
from nmcompile.train import ASP, LBC, SRSTE, SUBP, Magnitude, Method, OneByN, SpRe, SpReConv2d
from nmcompile.train.masks import as_blocks
from nmcompile.train.parametrizations import BestCombination
from nmcompile.train.weights import dense_weight, masked_weight
from tests.support.examples import examples
from tests.support.peer import by_peer
from tests.support.seed_modules import assert_close, export_onnx

METHODS: dict[str, tuple[Callable[[], Method], str]] = {
    "srste": (lambda: SRSTE("2:4"), "2:4"),
    "srste flat": (lambda: SRSTE("1:4", axis="flat"), "1:4@flat"),
    "lbc": (lambda: LBC("2:4", 0, 2), "2:4"),
    "lbc 1:8": (lambda: LBC("1:8", 1, 2), "1:8"),
    "spre over srste": (lambda: SpRe("1:4"), "1:4"),
    "spre over asp": (lambda: SpRe("2:4", ASP), "2:4"),
    "spre over lbc": (lambda: SpRe("2:4", LBC("2:4", 0, 2)), "2:4"),
    "subp": (lambda: SUBP("1x4", 0.5, end=2), "1x4"),
    "subp bpar, hard": (lambda: SUBP("1x8", 0.25, criterion="bpar", soft=False, end=2), "1x8"),
    "subp l2, decay": (lambda: SUBP("1x4", 0.5, criterion="l2", decay=1e-3, end=2), "1x4"),
    "asp": (lambda: ASP("2:4"), "2:4"),
    "one by n": (lambda: OneByN("1x4", 0.5), "1x4"),
    "magnitude": (lambda: Magnitude(0.3), "unstructured"),
}
# What is compiled of them is of the same form as without these options.
VARIANTS = ("srste flat", "lbc 1:8", "subp bpar, hard", "subp l2, decay")
EPOCHS, STEPS = 3, 2


class Block(nn.Module):
    """relu(bn(conv(x)) + x), once 3x3 and once 1x1."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + x)


def network(seed: int = 0) -> nn.Module:
    """Input (N, 3, 8, 8), ten classes; the stem and the classifier stay dense."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        Block(16),
        Block(16, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def batch(seed: int, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, torch.randint(10, (count,), generator=generator)


def train(model: nn.Module, method: Method, epochs: range, optimizer: Any) -> None:
    model.train()
    for epoch in epochs:
        method.on_epoch(epoch, EPOCHS)
        for step in range(STEPS):
            method.on_step()
            x, y = batch(epoch * STEPS + step)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


@functools.cache
def _trained(name: str) -> tuple[nn.Module, Method]:
    method = METHODS[name][0]()
    model = method.prepare(network())
    train(model, method, range(EPOCHS), sgd(model))
    return model.eval(), method


def trained(name: str) -> tuple[nn.Module, Method]:
    """A model and its method, trained once, for the caller to change."""
    return copy.deepcopy(_trained(name))


def predict(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x).numpy()


@pytest.mark.parametrize("name", METHODS)
def test_finalized_model_is_plain_and_holds_the_pattern(name: str) -> None:
    model, method = trained(name)
    names = [row.name for row in method.layers if row.skipped is None]
    assert names == [f"{block}.conv{i}" for block in (1, 2) for i in (1, 2)]
    x, _ = batch(99)
    before = predict(model, x)
    plain = method.finalize(model)
    assert_close(predict(plain, x), before)
    kinds = {type(module) for module in plain.modules()}
    assert kinds <= {nn.Sequential, Block, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear,
                     nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity}  # fmt: skip
    pattern = parse_pattern(METHODS[name][1])
    for layer in names:
        weight = plain.get_submodule(layer).weight
        assert isinstance(weight, nn.Parameter)
        assert check(weight.detach().numpy(), pattern).ok
        assert 0 < np.count_nonzero(weight.detach().numpy()) < 0.6 * weight.numel()


@pytest.mark.parametrize("name", METHODS)
def test_copy_can_be_finalized_and_the_original_trained_on(name: str) -> None:
    model, method = trained(name)
    x, _ = batch(99)
    before = predict(model, x)
    plain = method.finalize(copy.deepcopy(model))
    assert_close(predict(plain, x), before)
    assert_close(predict(model, x), before)
    train(model, method, range(EPOCHS - 1, EPOCHS), sgd(model))
    assert_close(predict(plain, x), before)
    assert_close(predict(method.finalize(model.eval()), x), predict(model, x))


@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on_from_a_state_dict(name: str) -> None:
    expected, _ = trained(name)
    method = METHODS[name][0]()
    model = method.prepare(network())
    optimizer = sgd(model)
    train(model, method, range(1), optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again = METHODS[name][0]()
    model = again.prepare(network(seed=1))
    model.load_state_dict(saved[0])
    optimizer = sgd(model)
    optimizer.load_state_dict(saved[1])
    train(model, again, range(1, EPOCHS), optimizer)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize(
    "dynamo",
    [
        pytest.param(False, id="torchscript"),
        pytest.param(True, id="dynamo", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in VARIANTS)) for name in METHODS]
)
def test_torch_onnx_and_artifact_agree(name: str, dynamo: bool, tmp_path: Path) -> None:
    model, _ = trained(name)
    x, _ = batch(99, count=4)
    expected = predict(model, x)
    path = nmcompile.compile(model, output=tmp_path / "trained.nmc", example_inputs=(x,)).path
    with runtime.load(path) as session:
        assert_close(next(iter(session.run(x).values())), expected, 1e-4)
    folded = nmcompile.fold(export_onnx(model, x, dynamo=dynamo))
    (found,) = by_peer(folded, {"x": x.numpy()})
    assert_close(found, expected, 1e-4)
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", ["srste", "lbc", "spre over srste", "subp"])
def test_training_under_autocast_in_a_wrapper(name: str) -> None:
    method = METHODS[name][0]()
    model = nn.DataParallel(method.prepare(network()))
    optimizer = sgd(model)
    for epoch in range(EPOCHS):
        method.on_epoch(epoch, EPOCHS)
        method.on_step()
        x, y = batch(epoch)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    plain = method.finalize(model)
    assert plain is model.module
    assert all(p.dtype == torch.float32 for p in plain.parameters())


@pytest.mark.parametrize("name", ["srste", "subp l2, decay", "lbc"])
def test_accumulated_gradients_are_those_of_one_pass(name: str) -> None:
    def gradients(parts: int) -> list[Tensor]:
        torch.manual_seed(0)
        method = METHODS[name][0]()
        body = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3))
        model = nn.Sequential(body, nn.Flatten(), nn.Linear(256, 10))
        method.prepare(model)
        method.on_epoch(0, EPOCHS)
        x = torch.randn(8, 8, 8, 8)
        for part in x.chunk(parts):
            method.on_step(decay_scale=1 / parts)
            (model(part).square().mean() / parts).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for found, expected in zip(gradients(4), gradients(1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_pruned_weights_shrink_under_srste() -> None:
    conv = nn.Conv2d(8, 8, 1, bias=False)
    dense = conv.weight.detach().clone()
    method = SRSTE("2:4", decay=0.5, only=["0"])
    model = method.prepare(nn.Sequential(conv))
    model(torch.zeros(1, 8, 1, 1)).sum().backward()
    pruned = conv.weight == 0
    torch.testing.assert_close(dense_weight(conv).grad, torch.where(pruned, 0.5 * dense, 0.0))


@examples(20)
@given(
    pattern=st.sampled_from(["2:4", "1:4", "1:8", "4:8@flat"]),
    start=st.integers(0, 4),
    length=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_lbc_ends_with_one_combination_on_schedule(
    pattern: str, start: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    method = LBC(pattern, start, start + length, only=["0"])
    conv = nn.Conv2d(16, 8, 3)
    method.prepare(nn.Sequential(conv))
    masked = masked_weight(conv)
    assert isinstance(masked, BestCombination)
    last = masked.left.shape[1]
    for epoch in range(start + length + 2):
        with torch.no_grad():
            masked.scores.copy_(torch.rand_like(masked.scores))
        before = masked.left.clone()
        method.on_epoch(epoch, 20)
        counts = masked.left.sum(1)
        assert (counts == counts[0]).all() and counts[0] <= last
        assert not (masked.left & ~before).any()  # what is gone stays gone
        if epoch < start or (epoch == start and length):
            assert counts[0] == masked.left.shape[1]
        assert counts[0] == 1 or epoch < start + length
        last = int(counts[0])
    assert last == 1


@examples(20)
@given(
    n=st.sampled_from([2, 4, 8]),
    density=st.floats(0.05, 0.95),
    criterion=st.sampled_from(["l1", "l2", "bpar"]),
    schedule=st.sampled_from(["linear", "cos", "exp", "cubic"]),
    start=st.integers(0, 3),
    length=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_subp_keeps_equal_counts_and_regrows_nothing_at_the_end(
    n: int, density: float, criterion: Any, schedule: Any, start: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(13, 16, 3)
    method = SUBP(
        f"1x{n}", density, criterion=criterion, schedule=schedule, start=start,
        end=start + length, seed=seed, only=["0"],
    )  # fmt: skip
    model = method.prepare(nn.Sequential(conv))
    kept = 13 - math.floor((1 - density) * 13 + 1e-9)
    counts = []
    for epoch in range(start + length + 2):
        method.on_epoch(epoch, 20)
        alive = as_blocks(conv.weight, n).abs().sum(2) > 0
        each = alive.sum(1)
        assert (each == each[0]).all()
        counts.append(int(each[0]))
        assert counts[-1] == 13 if epoch < start else counts[-1] >= kept
    assert counts == sorted(counts, reverse=True)
    assert counts[start + length :] == [kept] * 2
    if criterion == "l1":
        norms = as_blocks(dense_weight(conv), n).abs().sum(2)
        best = torch.zeros_like(norms, dtype=torch.bool)
        best.scatter_(1, norms.topk(kept, dim=1).indices, True)
        assert torch.equal(as_blocks(conv.weight, n).abs().sum(2) > 0, best)
    method.finalize(model)


@examples(20)
@given(
    kernel=st.sampled_from([(3, 3), (5, 5), (1, 3), (2, 2)]),
    groups=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
    base=st.sampled_from([SRSTE, ASP]),
    seed=st.integers(0, 2**31),
)
def test_spre_folds_to_its_training_form(
    kernel: tuple[int, int], groups: int, bias: bool, base: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(8, 16, kernel, stride=2, padding=1, groups=groups, bias=bias)
    # Depthwise layers are read along the flattened weight: they have one input channel.
    pattern = "2:4@flat" if groups == 8 else "2:4"
    length = conv.weight.numel() if groups == 8 else conv.weight[0].numel()
    method = SpRe(pattern, base(pattern, only=["0"]))
    model = nn.Sequential(conv, nn.BatchNorm2d(16))
    if length % 4:
        with pytest.raises(PatternError, match="no multiple of 4"):
            method.prepare(model)
        return
    method.prepare(model)
    model.train()
    for _ in range(3):
        method.on_step()
        model(torch.randn(16, 8, 9, 9) * 3 + 1)
    model.eval()
    block = model[0]
    assert isinstance(block, SpReConv2d)
    first = block.conv.weight != 0
    second = block.second_weight(block.conv.weight) != 0
    assert not (second & ~first).any()
    x = torch.randn(4, 8, 9, 9)
    before = predict(model, x)
    assert method.finalize(model) is model
    folded = model[0]
    assert isinstance(folded, nn.Conv2d) and isinstance(model[1], nn.Identity)
    assert_close(predict(model, x), before)
    assert not ((folded.weight != 0) & ~first).any()


def test_spre_with_scale_zero_starts_at_the_function_of_its_base() -> None:
    x, _ = batch(0)
    model = network().eval()
    base = predict(ASP("2:4").prepare(copy.deepcopy(model)).eval(), x)
    assert_close(predict(SpRe("2:4", ASP, scale=0.0).prepare(model).eval(), x), base)


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y if y.sum() > 0 else -y


def test_spre_takes_the_names_of_batch_norms_it_cannot_find() -> None:
    with pytest.raises(PatternError, match=r"cannot trace Sequential.*norms="):
        SpRe("2:4").prepare(nn.Sequential(nn.Conv2d(3, 8, 1), Branching()))
    method = SpRe("2:4", norms={"1.conv": "1.bn"})
    model = method.prepare(nn.Sequential(nn.Conv2d(3, 8, 1), Branching()))
    assert isinstance(model.get_submodule("1.conv"), SpReConv2d)


def test_layers_are_left_out_with_a_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(8, 8, 1),
        nn.Linear(8, 10),
    )
    method = SRSTE("2:4", exclude=["4"])
    method.prepare(model)
    assert {row.name: row.skipped for row in method.layers} == {
        "0": "it is the first convolution and reads 3 channels",
        "1": "it is a depthwise convolution",
        "2": None,
        "3": "its 6 weights per output channel are no multiple of 4",
        "4": "it is excluded",
        "5": "it is the classifier",
    }
    blocks = SUBP("1x4", 0.5)
    with pytest.raises(PatternError, match="its weight is parametrized already"):
        SUBP("1x4", 0.5, only=["2"]).prepare(model)
    blocks.prepare(model)
    assert {row.name: row.skipped for row in blocks.layers if row.name in ("2", "4")} == {
        "2": "its weight is parametrized already",
        "4": None,
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SRSTE("1x4"), "expected an N:M pattern as 2:4, found 1x4"),
        (lambda: SUBP("2:4", 0.5), "expected a 1xN pattern as 1x16, found 2:4"),
        (lambda: SUBP("1x4", 1.5), "density between 0 and 1"),
        (lambda: SUBP("1x4", 0.5, criterion="l3"), "criterion 'l3' is not known"),  # type: ignore[arg-type]
        (lambda: SUBP("1x4", 0.5, schedule="up"), "schedule 'up' is not known"),  # type: ignore[arg-type]
        (lambda: SUBP("1x4", 0.5, tau=0.0), "tau above 0"),
        (lambda: SUBP("1x4", 0.5, start=3, end=2), "start <= end"),
        (lambda: LBC("2:4", 3, 2), "start <= end"),
        (lambda: LBC("16:32", 0, 1), "601080390 combinations"),
        (lambda: SpRe("2:4", SRSTE("1:4")), "expected a base for 2:4, found SRSTE for 1:4"),
        (lambda: ASP("2:4", only=["nowhere"]).prepare(network()), "no layer is called nowhere"),
        (lambda: ASP("2:4").prepare(nn.Sequential(nn.ReLU())), "no convolution and no linear"),
        (lambda: ASP("2:4").finalize(network()), "expected a model that `prepare` returned"),
        (
            lambda: SpRe("2:4").prepare(nn.Sequential(nn.Conv2d(8, 8, 1))),
            "kernel is larger than 1x1",
        ),
        (lambda: LBC("2:4", power=0.0), "power above 0, found 0.0"),
    ],
)
def test_wrong_use_says_what_is_wrong(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PatternError, match=message):
        make()
