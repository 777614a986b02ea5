"""One-shot methods that reorder the channels of a live model first."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, check, energy_kept, parse_pattern
from nmcompile.train import ASP, OneByN, SpRe
from nmcompile.train.masks import as_blocks
from nmcompile.train.method import MaskingMethod
from nmcompile.train.weights import dense_weight, masked_weight
from tests.support.permutable_models import X, conv_bn, network
from tests.support.seed_modules import assert_close, run_torch

METHODS: dict[str, tuple[Callable[..., MaskingMethod], str]] = {
    "asp": (lambda **options: ASP("2:4", permute=True, **options), "2:4"),
    "one by n": (lambda **options: OneByN("1x4", 0.5, rearrange=True, **options), "1x4"),
}


def plain(method: MaskingMethod) -> MaskingMethod:
    """The same without reordering."""
    twin = copy.deepcopy(method)
    twin.arrangement = None  # type: ignore[attr-defined]
    return twin


def unmasked(model: nn.Module) -> nn.Module:
    """A copy with the weights as they are under the masks."""
    model = copy.deepcopy(model)
    for module in model.modules():
        masked = masked_weight(module)
        if masked is not None:
            masked.mask.fill_(True)  # type: ignore[operator]
    return model


def energy(model: nn.Module) -> dict[str, float]:
    found = {}
    for name, module in model.named_modules():
        if masked_weight(module) is not None:
            weight, kept = dense_weight(module).detach(), module.weight
            assert isinstance(kept, Tensor)
            found[name] = energy_kept(weight.numpy(), kept.detach().numpy())
    return found


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ["residual", "bottleneck", "dense", "inverted"])
def test_the_function_stays_until_masks_are_on_and_they_keep_more(name: str, kind: str) -> None:
    make, pattern = METHODS[kind]
    method = make(example_inputs=X)
    model = network(name)
    expected, before = run_torch(model, X), energy(plain(method).prepare(network(name)))
    model.train()
    assert method.prepare(model) is model
    model.eval()
    assert_close(run_torch(unmasked(model), X), expected)
    after = energy(model)
    assert after.keys() == before.keys()
    assert np.mean([after[key] - before[key] for key in after]) > 0.003
    for row in method.layers:
        if row.skipped is None and "reordered" in row.note:
            assert f"{pattern} keeps {after[row.name]:.2%} of its energy" in row.note
            assert f"{before[row.name]:.2%} before channels were reordered" in row.note
    masked = run_torch(model, X)
    finalized = method.finalize(model)
    assert_close(run_torch(finalized, X), masked)
    for key in after:
        weight = finalized.get_submodule(key).weight
        assert isinstance(weight, Tensor)
        assert check(weight.detach().numpy(), parse_pattern(pattern)).ok


def test_training_mode_is_put_back() -> None:
    model = network("residual").train()
    model[0].eval()  # type: ignore[index]
    before = [(name, module.training) for name, module in model.named_modules()]
    METHODS["asp"][0](example_inputs=X).prepare(model)
    modes = dict(model.named_modules())
    assert all(modes[name].training == flag for name, flag in before)


def test_a_shared_order_serves_training_statistics_too() -> None:
    model, twin = network("residual").train(), network("residual").train()
    METHODS["asp"][0](example_inputs=X).prepare(model)
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        assert_close(unmasked(model).train()(x).numpy(), twin(x).numpy())


def test_one_by_n_searches_by_its_own_rule() -> None:
    """Blocks spread over output groups as they like, unlike in projection."""
    model = network("residual")
    METHODS["one by n"][0](example_inputs=X).prepare(model)
    weight = model.get_submodule("3.layers.0.0").weight
    assert isinstance(weight, Tensor)
    kept = as_blocks(weight.detach(), 4).abs().sum(2) > 0
    assert int(kept.sum()) == kept.numel() // 2
    assert len(set(kept.sum(1).tolist())) > 1


def test_the_default_example_is_an_image() -> None:
    torch.manual_seed(0)
    body = [conv_bn(3, 16, 3, 8), nn.ReLU(), conv_bn(16, 16, 3, 4), nn.ReLU(), conv_bn(16, 8)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = run_torch(model, x)
    method = ASP("2:4", permute=True)
    method.prepare(model)
    assert_close(run_torch(unmasked(model), x), expected)
    assert all("no order" not in row.note for row in method.layers if row.skipped is None)


def test_only_layers_that_are_prepared_are_searched() -> None:
    model = network("residual")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    METHODS["asp"][0](example_inputs=X, only=["3.layers.1.0"]).prepare(model)
    after = {
        key.replace("parametrizations.weight.original", "weight"): value
        for key, value in model.state_dict().items()
    }
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    # Between the two convolutions of one block: the first, its batch norm, and the second.
    assert {key.rpartition(".")[0] for key in moved} == {
        "3.layers.0.0", "3.layers.0.1", "3.layers.1.0"
    }  # fmt: skip


def test_a_seed_decides_the_order() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        method = METHODS["asp"][0](example_inputs=X, seed=seed)
        return dict(method.prepare(network("inverted")).state_dict())

    one, two, other = state(1), state(1), state(2)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_spre_over_a_permuting_base() -> None:
    model = network("residual")
    method = SpRe("2:4", ASP("2:4", permute=True, example_inputs=X), scale=0.0)
    base = ASP("2:4", permute=True, example_inputs=X).prepare(network("residual"))
    expected = run_torch(base, X)
    assert_close(run_torch(method.prepare(model).eval(), X), expected)
    note = next(row.note for row in method.layers if row.name == "3.layers.1.0")
    assert "a second branch" in note and "before channels were reordered" in note
    finalized = method.finalize(model)
    assert_close(run_torch(finalized, X), expected)


class Auxiliary(nn.Module):
    """A head that only training sees: evaluation does not show what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_bn(3, 16), conv_bn(16, 16)
        self.fc, self.extra = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        z: Tensor = self.fc(self.two(y).mean((2, 3)))
        return z + self.extra(y.mean((2, 3))) if self.training else z


def unchanged(model: nn.Module, prepare: Callable[[], Any], message: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PatternError, match=message):
        prepare()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_parameters_that_evaluation_does_not_use_are_an_error() -> None:
    model = Auxiliary()
    method = ASP("2:4", permute=True, example_inputs=X)
    message = r"found 2 that it does not: extra\.weight, extra\.bias; .*without reordering"
    unchanged(model, lambda: method.prepare(model), message)
    ASP("2:4").prepare(model)


def test_a_model_that_cannot_be_traced_asks_for_example_inputs() -> None:
    flat = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.Flatten(), nn.Linear(512, 4))
    method = ASP("2:4", permute=True)
    unchanged(
        flat, lambda: method.prepare(flat), r"a 224 x 224 example .*give example_inputs=\(x,\)"
    )
    linear = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    unchanged(linear, lambda: method.prepare(linear), "without two-dimensional convolutions")
    ASP("2:4", permute=True, example_inputs=torch.zeros(1, 8)).prepare(linear)
    with pytest.raises(PatternError, match="time limit of at least 0 seconds, found -1"):
        ASP("2:4", permute=True, time_limit=-1)


def test_layers_of_one_dimension_say_that_they_stay() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(16, 16, 3), nn.Conv1d(16, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.two(self.one(x).relu())
            return y

    model, x = Sequence().eval(), torch.randn(2, 16, 12)
    expected = run_torch(model, x)
    method = ASP("2:4", permute=True, example_inputs=x)
    method.prepare(model)
    assert_close(run_torch(unmasked(model), x), expected)
    assert [row.note for row in method.layers] == [
        "no order was searched for it: it is no 2-d layer"
    ] * 2


def test_a_layer_pruned_before_stays_pruned() -> None:
    model = network("residual")
    method = ASP("2:4", only=["3.layers.1.0"])
    method.finalize(method.prepare(model))
    expected = run_torch(model, X)
    again = ASP("2:4", permute=True, example_inputs=X, exclude=["3.layers.1.0"])
    again.prepare(model)
    assert_close(run_torch(unmasked(model), X), expected)
    weight = model.get_submodule("3.layers.1.0").weight
    assert isinstance(weight, Tensor) and check(weight.detach().numpy(), NM(2, 4)).ok


# SpRe decides before it changes anything


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({"0.0": "nowhere"}, "nowhere is no batch norm"),
        ({}, "no batch norm follows it directly"),
    ],
)
def test_spre_leaves_a_model_that_it_cannot_prepare(norms: dict[str, str], message: str) -> None:
    model = nn.Sequential(conv_bn(8, 8), nn.ReLU())
    unchanged(model, lambda: SpRe("2:4", norms=norms).prepare(model), message)
    assert type(model[0][0]) is nn.Conv2d  # type: ignore[index]
    SpRe("2:4").prepare(model)


def test_a_batch_norm_goes_into_one_branch_only() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    method = SpRe("2:4", norms={"0": "2", "1": "2"})
    method.prepare(model)
    assert "2 is that of another convolution" in {row.name: row.note for row in method.layers}["1"]
