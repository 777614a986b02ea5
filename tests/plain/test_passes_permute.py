"""permute_channels: what may move, that the function stays, and what it gains."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nmcompile.errors import PatternError
from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.passes.graphs.interface import Graph
from nmcompile.passes.permutation.spaces import ChannelSpaces, axis_order, find_channel_spaces
from nmcompile.passes.permute_channels import PermuteChannels, PermutedLayer
from nmcompile.passes.pipeline import check_graph, run_pipeline
from nmcompile.sparsity import NM, OneByN, Pruning, check, energy_kept, parse_pattern, project
from tests.support.examples import examples
from tests.support.permutable_models import NETWORKS, X, conv_bn, network
from tests.support.random_networks import Random
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch

Array = np.ndarray[Any, Any]
KINDS = ["torch", "folded torch", "folded onnx"]


@functools.cache
def exported(name: str, kind: str) -> SourceModel:
    model = network(name)
    if kind == "torch":
        return open_model(model, example_inputs=(X,))
    if kind == "folded torch":
        source = opened(name, "torch")
        run_pipeline(source.graph)
        return source
    return open_folded(export_onnx(model, X, dynamo="dynamo" in kind))[0]


def opened(name: str, kind: str) -> SourceModel:
    """A fresh copy: exporting anew takes longer than the tests."""
    return dataclasses.replace(exported(name, kind), graph=exported(name, kind).graph.copy())


def output(source: SourceModel, x: Tensor = X) -> Array:
    return (run_torch if source.kind == "torch" else run_onnx)(source.native(), x)


def shake(graph: Graph, seed: int = 0) -> ChannelSpaces:
    """Reorder every free space at random."""
    found, random = find_channel_spaces(graph), np.random.default_rng(seed)
    orders = {
        index: random.permutation(space.size)
        for index, space in found.spaces.items()
        if space.fixed is None
    }
    for touch in found.touches:
        order = axis_order(touch.segments, orders)
        if order is not None:
            graph.reorder(touch.constant, touch.axis, order)
    return found


def fixed_outputs(found: ChannelSpaces) -> set[str]:
    return {
        name
        for name, segments in found.outputs.items()
        if any(found.spaces[segment.space].fixed for segment in segments)
    }


MOVES: dict[str, set[str]] = {
    "residual": {"5.fc"},
    "bottleneck": {"5.fc"},
    "dense": {"3.fc"},
    "inverted": {"3.fc"},
    "encoder": {"3.fc"},
    "flat": {"2.fc"},
    "shuffle": {"2.before", "2.branch", "2.after", "2.grouped", "3.fc"},
}
"""The layers whose outputs stay in order; those of `shared` have different names by framework."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in NETWORKS for kind in KINDS),
        *((name, "folded dynamo onnx") for name in ("residual", "encoder")),
    ],
)
def test_any_order_of_free_channels_keeps_the_function(name: str, kind: str) -> None:
    source, expected = opened(name, kind), run_torch(network(name), X)
    before = {layer.name: layer.weight.copy() for layer in source.graph.layers()}
    found = shake(source.graph)
    check_graph(source.graph)
    assert_close(output(source), expected)
    if name in MOVES:
        assert fixed_outputs(found) == MOVES[name]
    changed = [
        la.name for la in source.graph.layers() if not np.array_equal(la.weight, before[la.name])
    ]
    assert len(changed) >= 3
    # The copy moved, not what it was copied from.
    assert_close(output(exported(name, kind)), expected)


@examples(5, 80)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["torch", "folded torch", "folded onnx"]))
def test_random_networks_keep_their_function(seed: int, kind: str) -> None:
    model = Random(seed).eval()
    expected = run_torch(model, X)
    if kind == "torch":
        source = open_model(model, example_inputs=(X,))
    else:
        source = open_folded(
            *((model, (X,)) if kind == "folded torch" else (export_onnx(model, X),))
        )[0]
    shake(source.graph, seed)
    check_graph(source.graph)
    assert_close(output(source), expected)


def test_what_fixes_channels_is_named() -> None:
    source = opened("shuffle", "torch")
    found = find_channel_spaces(source.graph)
    shuffled, free = found.outputs["2.before"]  # its halves
    assert "not one after the other" in str(found.spaces[shuffled.space].fixed)
    assert found.spaces[free.space].fixed is None
    (segment,) = found.inputs["2.grouped"]
    assert "is a grouped convolution" in str(found.spaces[segment.space].fixed)
    found = find_channel_spaces(opened("shared", "torch").graph)
    (segment,) = found.outputs["0.0"]
    assert "2.twice.weight is read by 2 operators" in str(found.spaces[segment.space].fixed)


class Outside(nn.Module):
    """Ways in which channels must not move, around one convolution of 8 channels each."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.use = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), use

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.use(self.one(x)).reshape(2, 8, 8, 8)).mean((2, 3))
        return y


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y.softmax(1),
        lambda y: y.cumsum(1),
        lambda y: y.flip(1),
        lambda y: y.roll(1, 1),
        lambda y: y.transpose(1, 2),
        lambda y: y[:, [1, 0, 2, 3, 4, 5, 6, 7]],
        lambda y: torch.cat([y[:, 4:], y[:, :4]], 1),
        lambda y: torch.cat([y, y], 1)[:, 3:11],
        lambda y: y * torch.linspace(0, 1, 8),  # along the width, which is 8 too
        lambda y: y + y.mean((0, 2)),  # (C, width) lies along height and width
        lambda y: y + y.mean((0, 1)),
        lambda y: nn.functional.pad(y, (0, 0, 0, 0, 1, 0))[:, :8],
        lambda y: nn.functional.layer_norm(y.movedim(1, 3), (8,), torch.arange(8.0)).movedim(3, 1),
        lambda y: nn.functional.group_norm(y, 2, torch.arange(8.0)),
        lambda y: nn.functional.pixel_shuffle(y, 2),
        lambda y: y.reshape(2, 4, 2, 8, 8).sum(2).repeat(1, 2, 1, 1),
        lambda y: y.sort(1).values * torch.arange(8.0)[:, None, None],
        lambda y: torch.where(y > 0, y, y.flip(1)),
        lambda y: y.unfold(1, 2, 1).mean(4)[:, [0, 1, 2, 3, 4, 5, 6, 6]],
        lambda y: nn.functional.avg_pool3d(y[:, None], (3, 1, 1), 1, (1, 0, 0))[:, 0],
        lambda y: nn.functional.max_pool2d(y.reshape(16, 8, 8), 3, 1, 1),
    ],
)
def test_operators_that_tell_channels_apart_keep_the_function(use: Any) -> None:
    torch.manual_seed(0)
    model = Outside(use).eval()
    source, expected = open_model(model, example_inputs=(X,)), run_torch(model, X)
    for seed in range(2):
        shake(source.graph, seed)
        assert_close(output(source), expected)


# The pass


def searched(source: SourceModel, pattern: str, **options: Any) -> dict[str, PermutedLayer]:
    names = [layer.name for layer in source.graph.layers() if layer.groups == 1]
    step = PermuteChannels(parse_pattern(pattern), names, **options)
    return {row.layer: row for row in step.call(source.graph).layers}


@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
@pytest.mark.parametrize("kind", ["torch", "folded onnx"])
@pytest.mark.parametrize("name", ["residual", "dense", "inverted", "flat"])
def test_energy_rises_and_the_function_stays(name: str, kind: str, pattern: str) -> None:
    source, expected = opened(name, kind), run_torch(network(name), X)
    density = 0.5 if "x" in pattern else None
    before = {layer.name: layer.weight.copy() for layer in source.graph.layers()}
    rows = searched(source, pattern, density=density)
    check_graph(source.graph)
    assert_close(output(source), expected)
    for layer in source.graph.layers():
        if layer.name not in rows:
            continue
        row = rows[layer.name]
        now = project(layer.weight, parse_pattern(pattern), density)
        then = project(before[layer.name], parse_pattern(pattern), density)
        assert row.after == pytest.approx(energy_kept(layer.weight, now), abs=1e-6)
        assert row.before == pytest.approx(energy_kept(before[layer.name], then), abs=1e-6)
    free = [row for row in rows.values() if row.left is None]
    assert len(free) >= 3
    assert np.mean([row.after - row.before for row in free]) > 0.003
    for row in rows.values():
        assert row.left is None or row.after == pytest.approx(row.before, abs=0.05)


def test_layers_that_cannot_be_searched_say_why() -> None:
    rows = searched(opened("flat", "torch"), "2:4")
    assert "flattened image" in str(rows["2.one"].left)
    assert "input of the model" in str(rows["0.0"].left)
    assert rows["2.two"].left is None and rows["2.two"].channels == 24
    rows = searched(opened("residual", "torch"), "2:4@flat")
    assert "2:4@flat run over the kernel" in str(rows["2.layers.0.0"].left)
    rows = searched(opened("dense", "torch"), "2:4")  # groups lie across two spaces
    assert rows["2.convs.1"].left == "its 26 input channels are no multiple of 4"
    assert rows["2.transition"].left is None and rows["2.transition"].channels == 46
    rows = searched(opened("flat", "torch"), "1x4", density=0.5)
    assert "output of the model" in str(rows["2.fc"].left) and rows["2.one"].left is None


@pytest.mark.parametrize("pattern", ["2:4", "1:4@flat", "1x4"])
@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_magnitude_never_falls(pattern: str, limit: float) -> None:
    density = 0.5 if "x" in pattern else None
    for name in ("dense", "flat"):
        source = opened(name, "folded torch")

        def kept(source: SourceModel = source) -> float:
            weights = [layer.weight for layer in source.graph.layers()]
            imposed = [project(w, parse_pattern(pattern), density) for w in weights]
            return float(sum(np.abs(w).sum(dtype=np.float64) for w in imposed))

        before = kept()
        searched(source, pattern, density=density, time_limit=limit)
        assert kept() >= before * (1 - 1e-6)
        assert_close(output(source), run_torch(network(name), X))


def test_a_layer_with_a_pattern_of_its_own_keeps_its_channels_in_place() -> None:
    source = opened("residual", "folded torch")
    held: dict[str, NM | OneByN] = {"3.layers.0.0": NM(1, 4), "4.layers.1.0": OneByN(8)}
    for op in source.graph.ops():
        if op.name in held and op.weight is not None:
            source.graph.set_weight(op, project(op.weight, held[op.name], 0.25), op.bias)
    expected = output(source)
    names = [layer.name for layer in source.graph.layers() if layer.name not in held]
    result = PermuteChannels(NM(2, 4), names).call(source.graph)
    rows = {row.layer: row for row in result.layers}
    for layer in source.graph.layers():
        if layer.name in held:
            assert check(layer.weight, held[layer.name]).ok
    # The first reads what two blocks sum up, the second writes to another sum.
    assert (
        rows["2.layers.0.0"].left == "layer 3.layers.0.0 has 1:4, which another order would break"
    )
    assert "4.layers.1.0 has 1x8" in str(rows["4.layers.0.0"].left)
    assert rows["2.layers.1.0"].left is None
    assert_close(output(source), expected)


# enforce


def test_enforce_says_what_permuting_gains() -> None:
    plain, permuted = opened("residual", "folded onnx"), opened("residual", "folded onnx")
    before = {row.layer: row for row in EnforcePattern("2:4").call(plain.graph).layers}
    shares: list[int] = []
    step = EnforcePattern("2:4", Pruning(permute=True), lambda done, total: shares.append(done))
    result = step.call(permuted.graph)
    check_graph(permuted.graph)
    assert result.finished and shares == sorted(shares) and shares[-1] == 1000
    for row in result.layers:
        if row.skipped is not None:
            assert row.energy_dropped_in_order is None
            continue
        assert row.energy_dropped_in_order is not None
        assert row.energy_dropped_in_order == pytest.approx(before[row.layer].energy_dropped)
        assert row.energy_dropped < row.energy_dropped_in_order
        note = next(note for note in result.notes if note.layer == row.layer)
        shown = f", {100 * row.energy_dropped_in_order:.2f} % before channels were permuted"
        assert shown in note.text
        weight = next(la.weight for la in permuted.graph.layers() if la.name == row.layer)
        assert check(weight, NM(2, 4)).ok


def test_a_layer_that_holds_the_pattern_keeps_it() -> None:
    source = opened("residual", "folded torch")
    EnforcePattern("2:4", Pruning(layers=["3.layers.1.0"])).call(source.graph)
    result = EnforcePattern("2:4", Pruning(permute=True)).call(source.graph)
    rows = {row.layer: row for row in result.layers}
    assert rows["3.layers.1.0"].energy_dropped == 0.0
    assert rows["3.layers.1.0"].energy_dropped_in_order is None
    assert all(
        check(la.weight, NM(2, 4)).ok for la in source.graph.layers() if not rows[la.name].skipped
    )


def test_a_seed_decides_the_result() -> None:
    def weights(seed: int) -> list[Array]:
        source = opened("residual", "folded torch")
        EnforcePattern("2:4", Pruning(permute=True, seed=seed)).call(source.graph)
        return [layer.weight for layer in source.graph.layers()]

    one, two, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_time_the_model_is_projected_in_a_valid_order() -> None:
    source = opened("residual", "folded torch")
    result = EnforcePattern("2:4", Pruning(permute=True, time_limit=0.0)).call(source.graph)
    assert not result.finished
    assert all(row.skipped or check_held(source, row.layer) for row in result.layers)


def check_held(source: SourceModel, name: str) -> bool:
    return check(next(la.weight for la in source.graph.layers() if la.name == name), NM(2, 4)).ok


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("2:4", {"mode": "verify"}, "expected mode 'project', found 'verify'"),
        ("auto", {}, "expected an N:M or 1xN pattern, found auto"),
        ("unstructured", {"density": 0.5}, "pattern, found unstructured"),
        ("dense", {}, "leave permute out"),
        ("2:4", {"time_limit": -1.0}, "at least 0 seconds, found -1.0"),
        ("2:4", {"time_limit": float("nan")}, "found nan"),
    ],
)
def test_permuting_for_nothing_is_an_error(
    pattern: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatternError, match=message):
        EnforcePattern(pattern, Pruning(permute=True, **options))


def test_permuting_for_1xn_needs_a_density() -> None:
    with pytest.raises(PatternError, match="expected a density between 0 and 1"):
        EnforcePattern("1x4", Pruning(permute=True)).call(opened("flat", "torch").graph)


def test_the_bias_of_addmm_moves_too() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = conv_bn(3, 8), nn.Linear(8, 4)
            self.weight, self.bias = nn.Parameter(torch.rand(8, 8)), nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(
                torch.addmm(self.bias, self.body(x).mean((2, 3)), self.weight).relu()
            )
            return y

    model = Added().eval()
    source, expected = open_folded(model, (X,))[0], run_torch(model, X)
    found = shake(source.graph)
    assert fixed_outputs(found) == {"last"}
    assert_close(output(source), expected)
