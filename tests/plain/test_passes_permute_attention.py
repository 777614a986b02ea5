"""permute_channels through matrix products: hidden units, heads, and what lies along tokens."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.permutation.layouts import Factor, Segment, made
from nmcompile.passes.permutation.unions import Unions
from nmcompile.passes.permute_channels import PermuteChannels
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import energy_kept, parse_pattern, project
from nmcompile.train import ASP
from nmcompile.train.weights import weights_of
from tests.plain.test_passes_permute import output, shake
from tests.support.attention_models import ATTENTION, HEADS, IMAGES, LAYERS, WIDTH, transformer
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, export_onnx, run_torch


def opened(attention: str, kind: str) -> SourceModel:
    model = transformer(attention)
    if kind == "torch":
        return open_model(model, example_inputs=(IMAGES,))
    if kind == "folded torch":
        return open_folded(model, (IMAGES,))[0]
    return open_folded(export_onnx(model, IMAGES, dynamo="dynamo" in kind))[0]


@pytest.mark.parametrize("kind", ["torch", "folded torch", "folded onnx", "folded dynamo onnx"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_transformers_keep_their_function(attention: str, kind: str) -> None:
    source, expected = opened(attention, kind), run_torch(transformer(attention), IMAGES)
    found = shake(source.graph)
    check_graph(source.graph)
    assert_close(output(source, IMAGES), expected)
    fixed = {name for name, segments in found.outputs.items() if reasons(found, segments)}
    assert fixed == {"head"}
    # The residual stream is one order; heads have one each, queries and keys together.
    stream = found.inputs["blocks.0.fc1"]
    assert stream == found.outputs["patches"] == found.inputs["head"]
    values = found.inputs[f"blocks.1.{LAYERS[attention][-1]}"]
    assert [segment.size for segment in values] == [WIDTH // HEADS] * HEADS
    assert len({segment.space for segment in values}) == HEADS
    if attention == "separate":
        assert found.outputs["blocks.0.attn.query"] == found.outputs["blocks.0.attn.key"]
        assert found.outputs["blocks.0.attn.value"] == found.inputs["blocks.0.attn.out"]


def reasons(found: Any, segments: Any) -> list[str]:
    return [r for s in segments if (r := found.spaces[s.space].fixed) is not None]


@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
@pytest.mark.parametrize("kind", ["folded torch", "folded onnx"])
@pytest.mark.parametrize("attention", ["fused", "torch"])
def test_more_is_kept_and_the_function_stays(attention: str, kind: str, pattern: str) -> None:
    source, expected = opened(attention, kind), run_torch(transformer(attention), IMAGES)
    density, wanted = 0.5 if "x" in pattern else None, parse_pattern(pattern)
    names = [layer.name for layer in source.graph.layers()][1:-1]
    result = PermuteChannels(wanted, names, density=density).call(source.graph)
    assert_close(output(source, IMAGES), expected)
    assert {row.layer: row.left for row in result.layers} == dict.fromkeys(names)
    weights = {layer.name: layer.weight for layer in source.graph.layers()}
    for row in result.layers:
        kept = energy_kept(weights[row.layer], project(weights[row.layer], wanted, density))
        assert row.after == pytest.approx(kept, abs=1e-6)
    assert np.mean([row.after - row.before for row in result.layers]) > 0.01


def test_one_shot_methods_order_a_live_transformer() -> None:
    for attention in ("fused", "torch"):
        model = transformer(attention)
        expected = run_torch(model, IMAGES)
        method = ASP("2:4", permute=True, example_inputs=IMAGES)
        method.prepare(model)
        notes = {row.name: row.note for row in method.layers if row.skipped is None}
        assert all("before channels were reordered" in note for note in notes.values())
        for place in weights_of(model):
            masked: Any = place.masked
            if masked is not None:
                masked.mask.fill_(True)
        assert_close(run_torch(model, IMAGES), expected)


def test_blocks_across_heads_are_left_in_order() -> None:
    source = opened("fused", "folded torch")
    step = PermuteChannels(parse_pattern("1x16"), ["blocks.0.attn.qkv"], density=0.5)
    (row,) = step.call(source.graph).layers
    assert row.left == f"its outputs have orders of {WIDTH // HEADS} channels, no multiple of 16"


# Operators between two products


class Tokens(nn.Module):
    """Two linear layers around something that is done to (2, 6, 8)."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.one, self.two, self.use = nn.Linear(5, 8), nn.Linear(8, 4), use

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.use(self.one(x)).reshape(2, -1, 8))
        return y


T = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
RAMP, OTHER = torch.arange(8.0) + 1, torch.linspace(-1, 1, 8)


def heads(y: Tensor) -> Tensor:
    return y.reshape(2, 6, 4, 2).transpose(1, 2)


def joined(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(2, 6, 8)


FREE: dict[str, Any] = {
    "softmax over channels": lambda y: y.softmax(-1),
    "softmax over tokens": lambda y: y.softmax(1),
    "layer norm": lambda y: functional.layer_norm(y, (8,), RAMP, OTHER),
    "rms norm": lambda y: functional.rms_norm(y, (8,), RAMP),
    "norm spelled out": lambda y: (y - y.mean(-1, keepdim=True)) / y.square().mean(-1)[..., None],
    "scale": lambda y: y * RAMP + OTHER[None, None],
    "tokens in another order": lambda y: y.transpose(0, 1).reshape(12, 8),
    "some tokens": lambda y: y[:, 1:5],
    "a token in front": lambda y: torch.cat([RAMP.expand(2, 1, 8), y], 1),
    "gate": lambda y: torch.cat([y, y.tanh()], -1).chunk(2, -1)[0] * y.chunk(1, -1)[0].sigmoid(),
    "halves": lambda y: torch.cat([y[..., 4:].tanh(), y[..., :4]], -1),
    "mean of tokens": lambda y: y.mean(1),
    "heads and back": lambda y: joined(heads(y).relu()),
    "scale of each head": lambda y: joined(heads(y) * RAMP[:4, None, None]),
    "norm in each head": lambda y: joined(functional.layer_norm(heads(y), (2,))),
    "heads attend": lambda y: joined((heads(y) @ heads(y).transpose(2, 3)).softmax(-1) @ heads(y)),
    "sdpa": lambda y: joined(functional.scaled_dot_product_attention(heads(y), heads(y), heads(y))),
    "as an image": lambda y: functional.avg_pool2d(
        y.transpose(1, 2).reshape(2, 8, 2, 3), 3, 1, 1
    ).flatten(2).transpose(1, 2),
    "tokens mixed": lambda y: (torch.linspace(-1, 1, 36).reshape(6, 6) @ y),
}  # fmt: skip

HELD: dict[str, Any] = {
    "flip": lambda y: y.flip(-1),
    "roll": lambda y: y.roll(1, -1),
    "cumulative sum": lambda y: y.cumsum(-1),
    "some channels": lambda y: y[..., ::2].repeat(1, 1, 2),
    "matrix of channels": lambda y: y @ torch.linspace(-1, 1, 64).reshape(8, 8),
    "shuffle": lambda y: y.reshape(2, 6, 4, 2).transpose(2, 3).reshape(2, 6, 8),
    "tokens for channels": lambda y: y[:, :, :6].transpose(1, 2).repeat(1, 2, 2)[:, :6, :8],
    "channels by channels": lambda y: y.transpose(1, 2) @ y @ RAMP.diag(),
    "norm of each head, scaled alike": lambda y: joined(
        functional.layer_norm(heads(y), (2,), RAMP[:2], RAMP[1:3])
    ),
    "scale in each head": lambda y: joined(heads(y) * RAMP[:2]),
    "mean of heads": lambda y: heads(y).mean(1).repeat(1, 1, 4),
    "heads change places": lambda y: joined(heads(y).flip(1)),
    "a mean with a ramp": lambda y: y.mean(-1, keepdim=True) * RAMP + RAMP * y,
    "einsum": lambda y: torch.einsum("bnc,c->bnc", y, RAMP),
    "sort": lambda y: y + y.sort(-1)[0],
}  # fmt: skip


@pytest.mark.parametrize("use", [*FREE.items(), *HELD.items()], ids=lambda entry: entry[0])
def test_operators_on_tokens_keep_the_function(use: tuple[str, Any]) -> None:
    name, function = use
    torch.manual_seed(0)
    model = Tokens(function).eval()
    expected = run_torch(model, T)
    for form in ("torch", "onnx"):
        if form == "torch":
            source = open_model(model, example_inputs=(T,))
        else:
            if name == "rms norm":
                continue  # which the exporter does not know
            source = open_folded(export_onnx(model, T))[0]
        for seed in range(3):
            found = shake(source.graph, seed)
            assert_close(output(source, T), expected)
        if name in FREE:
            assert not reasons(found, found.outputs["one"]), reasons(found, found.outputs["one"])
        elif form == "torch":
            assert reasons(found, found.outputs["one"])


class Positions(nn.Module):
    """A constant of nine tokens is cut to as many as there are."""

    def __init__(self, cut: Any) -> None:
        super().__init__()
        self.one, self.table, self.cut = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 9, 8)), cut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.cut(self.table, x.shape[1])
        return y


@pytest.mark.parametrize(
    ("operator", "cut"),
    [
        ("slice", lambda table, count: table[:, :count]),
        ("select", lambda table, count: table[:, count - 1 : count] + table[:, count - 1, None]),
        ("getitem", lambda table, count: table.split([count, 9 - count], 1)[0]),
    ],
)
def test_cuts_at_places_that_the_model_computes_are_not_read(operator: str, cut: Any) -> None:
    x = (torch.zeros(2, 6, 8),)
    dynamic = ({1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Positions(cut).eval(), x, dynamic_shapes=dynamic)
    ops = FxGraph(program.module(check_guards=False)).ops()
    cuts = [op for op in ops if operator in op.where]
    assert cuts and {op.flow.kind for op in cuts} == {"opaque"}


# What may be reordered may not always be left out

WHOLE: dict[str, Any] = {
    "softmax": lambda y: y.softmax(1),
    "layer norm": lambda y: functional.layer_norm(y, (8,), RAMP, OTHER),
    "mean": lambda y: y - y.mean(1, keepdim=True),
    "likeness": lambda y: (y @ y.T).softmax(1) @ y,
    "halves": lambda y: torch.cat([y[:, 4:].tanh(), y[:, :4]], 1),
    "gate": lambda y: torch.cat([y.chunk(2, 1)[0] * y.chunk(2, 1)[1].exp(), y[:, :4]], 1),
    "heads": lambda y: y.reshape(6, 4, 2).transpose(0, 1).softmax(-1).transpose(0, 1).flatten(1),
    "spread": lambda y: y[:, None].expand(6, 3, 8).mean(1),
    "turned twice": lambda y: y.t().cumsum(1).t(),
    "in an image": lambda y: y[:, :, None, None].expand(6, 8, 2, 2).mean((2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", WHOLE)
def test_zero_filters_stay_where_all_channels_count(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model, x = Tokens(WHOLE[name]).eval(), torch.randn(6, 5)
    model.forward = lambda x: model.two(model.use(model.one(x)))  # type: ignore[method-assign]
    with torch.no_grad():
        model.one.weight[[2, 5]] = 0
        model.one.bias[[2, 5]] = 0
    expected = run_torch(model, x)
    source = (
        open_folded(model, (x,))[0] if kind == "torch" else open_folded(export_onnx(model, x))[0]
    )
    assert_close(output(source, x), expected)


# Layouts and unions against arrays


@examples(50)
@given(data=st.data())
def test_layouts_follow_numpy(data: Any) -> None:
    """Reshapes and transpositions of a layout are those of an array of channel numbers."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    place = data.draw(st.integers(0, len(sizes) - 1))
    factors = [(Factor(s, 0 if i == place else None),) for i, s in enumerate(sizes)]
    layout = made(factors, {0: (Segment(0, sizes[place]),)})
    ramp = np.arange(sizes[place]).reshape([-1 if i == place else 1 for i in range(len(sizes))])
    array = np.broadcast_to(ramp, sizes)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(array.ndim)))
            array, layout = array.transpose(order), layout.transposed(order)
        else:
            primes = [p for size in array.shape for p in {4: [2, 2], 6: [2, 3]}.get(size, [size])]
            cuts = data.draw(st.lists(st.integers(0, len(primes)), max_size=3).map(sorted))
            ends = [0, *cuts, len(primes)]
            shape = [int(np.prod(primes[a:b])) for a, b in pairwise(ends)]
            array = array.reshape(shape)
            moved = layout.reshaped(shape)
            if moved is None:
                return
            layout = moved
        assert [layout.size(axis) for axis in range(array.ndim)] == list(array.shape)
        for axis in range(array.ndim):
            segments = layout.along(axis)
            if segments is None:
                continue
            # Along this axis the array says which channel is where, the same for all others.
            numbers = np.concatenate([np.repeat(np.arange(s.size), s.repeat) for s in segments])
            lines = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
            assert (lines == numbers).all()


@examples(50)
@given(seed=st.integers(0, 2**31))
def test_unions_split_what_is_united(seed: int) -> None:
    """Random cuts and unions against classes of single channels."""
    random, unions = np.random.default_rng(seed), Unions()
    size = 12
    wholes = [(unions.new(size),) for _ in range(3)]
    names = np.arange(3 * size).reshape(3, size)
    for _ in range(6):
        (i, j), length = random.integers(3, size=2), int(random.integers(1, size))
        a, b = random.integers(size - length + 1, size=2)
        one = unions.cut(wholes[i], int(a), int(a) + length)
        two = unions.cut(wholes[j], int(b), int(b) + length)
        unions.unite(one, two)
        for x, y in zip(names[i, a : a + length], names[j, b : b + length], strict=True):
            names[names == names[max(i, j)].dtype.type(max(x, y))] = min(x, y)
    found: dict[Any, int] = {}
    for whole, row in zip(wholes, names, strict=True):
        places = [(s.space, k) for s in unions.resolve(whole) for k in range(s.size)]
        assert len(places) == size
        for place, name in zip(places, row, strict=True):
            assert found.setdefault(place, name) == name
    assert len(set(found.values())) == len(set(names.reshape(-1)))
