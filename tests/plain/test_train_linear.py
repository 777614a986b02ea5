"""The training methods on linear layers and attention: train, finalize, load."""

import argparse
import copy
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
from torch.nn.utils import prune

import nmcompile
from nmcompile.errors import PatternError
from nmcompile.folding import open_folded
from nmcompile.sparsity import NM, check, parse_pattern
from nmcompile.train import (
    ASP,
    LBC,
    SRSTE,
    SUBP,
    Magnitude,
    Method,
    OneByN,
    SpRe,
    load_checkpoint,
)
from nmcompile.train.masks import nm_mask
from nmcompile.train.weights import LayerWeight, dense_weight, weights_of
from tests.support.attention_models import (
    ATTENTION,
    CLASSES,
    IMAGES,
    PUBLIC,
    names,
    transformer,
)
from tests.support.examples import examples
from tests.support.seed_modules import SrSteLinear, assert_close, run_torch

METHODS: dict[str, tuple[Callable[[], Method], str]] = {
    "srste": (lambda: SRSTE("2:4"), "2:4"),
    "lbc": (lambda: LBC("1:4", 0, 2), "1:4"),
    "asp": (lambda: ASP("2:4"), "2:4"),
    "one by n": (lambda: OneByN("1x4", 0.5), "1x4"),
    "subp": (lambda: SUBP("1x8", 0.5, end=2), "1x8"),
    "magnitude": (lambda: Magnitude(0.4), "unstructured"),
}
EPOCHS = 3


def train(model: nn.Module, method: Method, epochs: range = range(EPOCHS)) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    for epoch in epochs:
        method.on_epoch(epoch, EPOCHS)
        method.on_step()
        generator = torch.Generator().manual_seed(epoch)
        x = torch.randn(8, 3, 8, 8, generator=generator)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def places(model: nn.Module) -> dict[str, LayerWeight]:
    return {place.name: place for place in weights_of(model)}


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", METHODS)
def test_transformers_are_trained_and_finalized(name: str, attention: str) -> None:
    make, pattern = METHODS[name]
    method, model = make(), transformer(attention)
    before = {key: type(module) for key, module in model.named_modules()}
    method.prepare(model)
    assert [row.name for row in method.layers if row.skipped is None] == names(attention)
    train(model, method)
    masked = run_torch(model, IMAGES)
    twin = copy.deepcopy(model)
    assert_close(run_torch(method.finalize(twin), IMAGES), masked)
    # The copy shares classes with the original, which trains on.
    assert_close(run_torch(model, IMAGES), masked)
    train(model, method, range(EPOCHS - 1, EPOCHS))
    masked = run_torch(model, IMAGES)
    assert_close(run_torch(method.finalize(model), IMAGES), masked)
    assert {key: type(module) for key, module in model.named_modules()} == before
    assert model.state_dict().keys() == transformer(attention).state_dict().keys()
    found = places(model)
    for layer in names(attention):
        weight = found[layer].value.detach().numpy()
        assert check(weight, parse_pattern(pattern)).ok, layer
        assert 0.1 < np.count_nonzero(weight) / weight.size < 0.6, layer


@pytest.mark.parametrize("name", ["srste", "lbc", "subp"])
def test_training_goes_on_from_what_was_saved(name: str) -> None:
    def half_trained() -> tuple[nn.Module, Method]:
        method = METHODS[name][0]()
        model = method.prepare(transformer("torch"))
        train(model, method, range(1))
        return model, method

    model, method = half_trained()
    again = METHODS[name][0]()
    other = again.prepare(transformer("torch", seed=1))
    other.load_state_dict(model.state_dict())
    for one, two in ((model, method), (other, again)):
        train(one, two, range(1, EPOCHS))
    assert_close(run_torch(other, IMAGES), run_torch(model, IMAGES))


@examples(10)
@given(
    inputs=st.integers(1, 6), outputs=st.integers(1, 9), m=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_gradients_are_those_of_the_public_layer(
    inputs: int, outputs: int, m: int, seed: int
) -> None:
    torch.manual_seed(seed)
    theirs = SrSteLinear(inputs * m, outputs, 2, m)
    ours = nn.Linear(inputs * m, outputs)
    ours.load_state_dict(theirs.state_dict())
    model = SRSTE(NM(2, m), only=["0"]).prepare(nn.Sequential(ours))
    x = torch.randn(3, 5, inputs * m)
    for one in (theirs, model):
        one(x).square().sum().backward()
    torch.testing.assert_close(model(x), theirs(x))
    torch.testing.assert_close(dense_weight(ours).grad, theirs.weight.grad)


def test_attention_of_inputs_of_unequal_width_has_three_projections() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2, kdim=8, vdim=24, batch_first=True)
            self.fc = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.attn(x, x[..., :8], x.repeat(1, 1, 2)[..., :24])
            z: Tensor = self.fc(y)
            return z

    torch.manual_seed(0)
    model, x = Cross().eval(), torch.randn(2, 3, 16)
    method = SRSTE("2:4")
    method.prepare(model)
    expected = ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert [row.name for row in method.layers if not row.skipped] == [f"attn.{n}" for n in expected]
    masked = run_torch(model, x)
    assert_close(run_torch(method.finalize(model), x), masked)
    assert all(check(p.value.detach().numpy(), NM(2, 4)).ok for p in list(weights_of(model))[:4])


def test_a_weight_that_something_else_reads_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(12, 8), nn.Linear(8, 8)
            self.head, self.last = nn.Linear(8, 12, bias=False), nn.Linear(12, 4)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.head(self.fc(self.embed(x))))
            return y

    model = Tied()
    before = model.embed.weight.detach().clone()
    method = ASP("2:4")
    method.finalize(method.prepare(model))
    rows = {row.name: row.skipped for row in method.layers}
    assert rows["head"] == "its weight is shared: embed.weight and head.weight are one tensor"
    assert rows["fc"] is None and torch.equal(model.embed.weight, before)


# SpRe


def test_spre_says_that_matrix_products_have_no_positions() -> None:
    message = (
        r"expected a convolution whose kernel is larger than 1x1, found blocks\.0\.attn\.\S+ "
        r"and \d+ more, .*train them with SRSTE\('2:4'\)"
    )
    for attention in ATTENTION:
        with pytest.raises(PatternError, match=message):
            SpRe("2:4").prepare(transformer(attention))


def test_spre_leaves_linear_layers_to_its_base() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    method = SpRe("2:4")
    method.prepare(model)
    notes = {row.name: row.note for row in method.layers}
    assert "a second branch" in notes["0.0"]
    assert notes["2"] == "no second branch: a matrix product has no kernel positions to choose from"
    x = torch.randn(2, 8, 4, 4)
    trained = run_torch(model.eval(), x)
    assert_close(run_torch(method.finalize(model), x), trained)
    weight = model.get_submodule("2").weight
    assert isinstance(weight, Tensor) and check(weight.detach().numpy(), NM(2, 4)).ok


# Checkpoints


def saved(model: nn.Module, path: Path) -> Path:
    """As DeiT's training script does."""
    torch.save({"model": model.state_dict(), "epoch": 7, "args": argparse.Namespace(k=5)}, path)
    return path


@pytest.mark.parametrize("attention", ["fused", "separate"])
@pytest.mark.parametrize("kind", PUBLIC)
def test_checkpoints_of_public_linear_layers(kind: str, attention: str, tmp_path: Path) -> None:
    expected = transformer(attention, PUBLIC[kind])
    path = saved(expected, tmp_path / "checkpoint.pth")
    make: Callable[[], Method] = (lambda: SRSTE("2:4")) if kind == "srste" else lambda: LBC("2:4")
    model = transformer(attention, seed=1)
    report = load_checkpoint(model, path, method := make())
    assert report.method == ("LBC" if kind == "lbc" else "SR-STE or dense")
    assert not (report.missing or report.unexpected or report.mismatched)
    assert_close(run_torch(model, IMAGES), run_torch(expected, IMAGES))
    assert_close(run_torch(method.finalize(model), IMAGES), run_torch(expected, IMAGES))
    if kind == "lbc":
        plain = transformer(attention, seed=1)
        load_checkpoint(plain, path)
        assert_close(run_torch(plain, IMAGES), run_torch(expected, IMAGES))


FORMS: dict[str, tuple[str, str]] = {
    "apex": ("", "__{}_mma_mask"),
    "torch.nn.utils.prune": ("_orig", "{}_mask"),
    "mask": ("", "{}.mask"),
}
"""What stands behind a weight's name, and the name of its mask."""


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_masks_beside_the_weights_of_attention(form: str, prepared: bool) -> None:
    behind, spelling = FORMS[form]
    torch.manual_seed(3)
    trained = transformer("torch", seed=2)
    state: dict[str, Any] = dict(trained.state_dict())
    for place in [p for p in weights_of(trained) if p.name in names("torch")]:
        mask = torch.rand_like(place.value) < 0.5
        if form == "apex":
            mask = nm_mask(torch.rand_like(place.value), NM(2, 4))
        path = place.key.removesuffix(place.tensor)
        state[f"{place.key}{behind}"] = state.pop(place.key).clone()
        state[path + spelling.format(place.tensor)] = mask
        with torch.no_grad():
            place.value.mul_(mask)
    model = transformer("torch")
    report = load_checkpoint(model, state, ASP("2:4") if prepared else None)
    assert form == "mask" or report.method in ("ASP", form)
    assert_close(run_torch(model, IMAGES), run_torch(trained, IMAGES))


def test_a_pruned_attention_takes_what_it_saved() -> None:
    def pruned(seed: int) -> nn.Module:
        model = transformer("torch", seed=seed)
        for place in weights_of(model):
            # Attention never calls its last layer, whose hook would mask the weight.
            if place.name in names("torch") and not place.name.endswith("out_proj"):
                prune.random_unstructured(  # type: ignore[no-untyped-call]
                    place.module, place.tensor, amount=0.5
                )
        return model

    expected, model = pruned(1), pruned(2)
    load_checkpoint(model, expected.state_dict())
    assert_close(run_torch(model, IMAGES), run_torch(expected, IMAGES))


# What is trained is what is folded, inspected and enforced


@pytest.mark.parametrize("attention", ATTENTION)
def test_trained_models_fold_to_layers_of_the_pattern(attention: str) -> None:
    method = SRSTE("2:4")
    model = method.prepare(transformer(attention))
    train(model, method)
    expected = run_torch(model, IMAGES)
    for form in (model, method.finalize(copy.deepcopy(model))):
        graph = open_folded(form, IMAGES)[0].graph
        assert_close(run_torch(graph.native(), IMAGES), expected)
        found = {layer.name: layer.weight for layer in graph.layers()}
        assert list(found) == ["patches", *names(attention), "head"]
        held = [name for name, weight in found.items() if check(weight, NM(2, 4)).ok]
        assert held == names(attention)


@pytest.mark.parametrize("attention", ATTENTION)
def test_enforce_finds_the_layers_that_training_does(attention: str) -> None:
    rows: list[Any] = []
    nmcompile.enforce(
        transformer(attention), "1:4", example_inputs=IMAGES, report=lambda r: rows.extend(r.layers)
    )
    assert [row.layer for row in rows if row.skipped is None] == names(attention)
    assert [row.layer for row in rows if row.skipped] == ["patches", "head"]
