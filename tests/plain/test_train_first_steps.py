"""What a first training loop gets wrong, and how the methods' arguments are spelled."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nmcompile.errors import PatternError
from nmcompile.train import ASP, LBC, SRSTE, SUBP, OneByN, SpRe
from nmcompile.train.method import Method

STEPS = 3
ADDS: dict[str, Callable[[], Method]] = {
    "SpRe": lambda: SpRe("2:4", SRSTE),
    "SpRe over LBC": lambda: SpRe("2:4", LBC),
    "LBC": lambda: LBC("2:4"),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
    )


def train(model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> None:
    method.on_epoch(0, 4)
    for _ in range(STEPS):
        method.on_step()
        optimizer.zero_grad()
        model(torch.randn(4, 8, 8, 8)).square().mean().backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


@pytest.mark.parametrize("name", ADDS)
def test_an_optimizer_made_before_prepare_is_noticed(name: str) -> None:
    method, model = ADDS[name](), network()
    optimizer = sgd(model)
    model = method.prepare(model)
    train(model, method, optimizer)
    with pytest.warns(UserWarning, match=f"in {STEPS} steps .* make it after prepare"):
        method.finalize(model)


@pytest.mark.parametrize("name", [*ADDS, "untrained"])
def test_an_optimizer_made_after_prepare_is_not(name: str) -> None:
    method = ADDS.get(name, ADDS["SpRe"])()
    model = method.prepare(network())
    if name != "untrained":
        train(model, method, sgd(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.finalize(model)


def test_a_method_that_adds_nothing_never_warns() -> None:
    method, model = SRSTE("2:4"), network()
    optimizer = sgd(model)
    model = method.prepare(model)
    train(model, method, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.finalize(model)


@pytest.mark.parametrize(
    "method",
    [
        *(LBC("2:4"), SRSTE("2:4"), ASP("2:4"), SpRe("2:4"), SpRe("2:4", LBC)),
        *(SUBP("1x16"), OneByN("1x16"), SUBP("1x16@0.25"), OneByN("1x16@0.25")),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_pattern_is_all_that_a_method_needs(method: Method) -> None:
    model = method.prepare(network())
    train(model, method, sgd(model))
    method.on_epoch(3, 4)
    weight = method.finalize(model)[3].weight  # type: ignore[index]
    kept = np.count_nonzero(weight.detach().numpy()) / weight.numel()
    assert kept == (getattr(method, "density", 0.5))


@pytest.mark.parametrize("kind", [SUBP, OneByN])
def test_a_density_that_is_said_twice_has_to_be_the_same(kind: type[SUBP | OneByN]) -> None:
    assert kind("1x16@0.25", density=0.25).density == 0.25
    with pytest.raises(PatternError, match=r"'1x16@0.25' says .* beside it is 0.5"):
        kind("1x16@0.25", density=0.5)
