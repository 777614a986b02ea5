"""Our training methods against traces of the authors' code; docs/methods.md says how those came.

`python -m benchmarks.authors CHECKOUTS --write` makes them anew.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.authors.__main__ import TRACES
from benchmarks.authors.cases import CASES, Case
from benchmarks.authors.checkpoints import CHECKPOINTS, EXAMPLES, images, loaded
from benchmarks.authors.ours import Ours
from benchmarks.authors.setting import LAYERS, float64, load, train
from nmcompile.sparsity import check, parse_pattern
from nmcompile.train import SUBP, Method
from nmcompile.train.masks import as_blocks


@pytest.fixture
def in_float64() -> Iterator[None]:
    with float64():
        yield


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_and_weights_are_those_of_the_authors_code(case: Case) -> None:
    theirs = load(TRACES / f"{case.name}.npz")
    who = Ours(case)
    ours = train(who)
    assert ours.keys() == {name for name in theirs if name.startswith(("mask ", "weight "))}
    for name, found in ours.items():
        if name.startswith("mask "):
            differ = (found != theirs[name]).reshape(len(found), -1).sum(1)
            assert not differ.any(), f"{name}: bits that differ after each epoch: {differ}"
        else:
            np.testing.assert_allclose(found, theirs[name], rtol=1e-9, err_msg=name)
    who.method.finalize(who.model)
    state = who.model.state_dict()
    converted = {name[10:]: theirs[name] for name in theirs if name.startswith("converted ")}
    assert (len(converted) == 2 * len(LAYERS)) == (case.method == "spre")
    for name, expected in converted.items():
        np.testing.assert_allclose(state[name].numpy(), expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", CHECKPOINTS, ids=lambda case: case.name)
def test_what_the_authors_code_saved_predicts_the_same_and_holds_its_pattern(case: Case) -> None:
    with np.load(EXAMPLES / f"{case.name}.npz", allow_pickle=False) as file:
        arrays: dict[str, Any] = {
            name: torch.from_numpy(file[name]) for name in file.files if name != "about"
        }
    expected = arrays.pop("logits").float()
    model, method = loaded(case, arrays)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
        method.finalize(model)
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    pattern = parse_pattern(f"{case.n}:{case.m}" if case.m else f"1x{case.n}")
    for name in LAYERS:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert check(weight.numpy(force=True), pattern).ok


def test_blocks_are_drawn_as_from_a_multinomial_without_replacement() -> None:
    """The authors draw with `torch.multinomial`; traces replace that by noise of ours."""
    groups, tau = 4000, 0.1
    sizes = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    conv = nn.Conv2d(6, 2 * groups, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(sizes[None, :, None, None].expand_as(conv.weight))
    # One block is kept, of the other five half are regrown.
    method: Method = SUBP("1x2", 1 / 6, tau=tau, schedule="linear", start=0, end=2, only=["0"])
    method.prepare(nn.Sequential(conv))
    method.on_epoch(1, 4)
    kept = as_blocks(conv.weight, 2).abs().sum(2) > 0
    assert kept[:, 0].all() and (kept.sum(1) == 3).all()
    chances = torch.softmax(functional.normalize(2 * sizes[1:], dim=0) / tau, dim=0)
    drawn = torch.multinomial(
        chances.expand(groups, -1), 2, generator=torch.Generator().manual_seed(0)
    )
    expected = torch.bincount(drawn.flatten(), minlength=5) / groups
    found = kept[:, 1:].double().mean(0)
    # Both are shares of 4000 draws, whose standard errors are at most 0.008.
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=0.04)
    assert (found.diff() > 0.02).all()  # far from uniform
