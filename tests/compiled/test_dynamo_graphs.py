"""How captured graphs are cut, and changed parameters noticed; torch runs all parts here."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from nmcompile.dynamo.constants import Constants
from nmcompile.dynamo.divide import PREFIX, divide, give_constants, pieces, views_returned
from nmcompile.dynamo.effects import take_effects
from nmcompile.frontends.captured import to_aten
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.operators.torch.refusals import refusals
from nmcompile.passes.pipeline import run_pipeline
from tests.support.seed_modules import randomised

X = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """A write into the input, layers, running sums, a norm, a layer, and views at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.second = nn.Sequential(nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, padding=1))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x.add_(1)
        found = self.first(x).cumsum(3) / 32
        low, high = self.second(found).split(32, 1)
        return low + high, high.flatten(1), found


def cut() -> tuple[nn.Module, fx.GraphModule, int]:
    model = randomised(Mixed())
    aten = to_aten(fx.symbolic_trace(model), [X.clone()])
    effects = take_effects(aten)
    graph = FxGraph(aten)
    run_pipeline(graph)
    give_constants(aten)
    parts = pieces(graph, {**refusals(graph), **views_returned(aten)})
    outer = divide(aten, parts)
    effects.put_back(outer)
    outer.graph.lint()
    outer.recompile()
    return model, outer, len(parts)


def test_a_graph_in_parts_computes_what_the_model_does() -> None:
    model, outer, count = cut()
    assert count == 2
    operators = [
        {str(node.target) for node in outer.get_submodule(f"{PREFIX}{index}").graph.nodes}  # type: ignore[union-attr]
        for index in range(count)
    ]
    assert all("aten.conv2d.default" in names for names in operators)
    assert not any("aten.cumsum.default" in names for names in operators)
    x, y = X.clone(), X.clone()
    with torch.no_grad():
        found, expected = outer(x), model(y)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, y)  # the write into the input is done


def test_views_that_are_returned_stay_with_torch() -> None:
    """A caller may write to one and read the other."""
    _, outer, _ = cut()
    splits = outer.graph.find_nodes(
        op="call_function", target=torch.ops.aten.split_with_sizes.default
    ) + outer.graph.find_nodes(op="call_function", target=torch.ops.aten.split.Tensor)
    assert len(splits) == 1


def test_refusals_name_the_operator() -> None:
    aten = to_aten(fx.symbolic_trace(randomised(Mixed())), [X.clone()])
    found = refusals(FxGraph(aten))
    assert any("aten.cumsum.default" in reason for reason in found.values())
    assert not any("aten.conv2d.default" in reason for reason in found.values())
    # Torch's inference form of it makes two tensors without elements, which nothing reads.
    assert not any("batch_norm" in reason for reason in found.values())


def _write(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor[0] = 3


def _write_behind(tensor: Tensor) -> None:
    tensor.data.mul_(0.5)


def _move(tensor: Tensor) -> None:
    tensor.data = tensor.data.clone()


def _through_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[...] = 7


@pytest.mark.parametrize("change", [_write, _write_behind, _move, _through_numpy])
@pytest.mark.parametrize("own", [False, True])
def test_changes_of_constants(change: Callable[[Tensor], None], own: bool) -> None:
    tensors = [nn.Parameter(torch.randn(shape)) for shape in ((), (3,), (40, 7), (8, 4, 3, 3))]
    tensors.append(nn.Parameter(torch.randn(6, 50).t()))
    for tensor in tensors:
        held = {} if own else dict(enumerate(tensors))
        constants = Constants(held, tensors if own else ())
        arguments = [] if own else tensors
        assert constants.are(arguments) and constants.hold(arguments)
        if tensor.ndim or change is not _write:
            change(tensor)
            assert constants.are(arguments) and not constants.hold(arguments)


def test_other_tensors_are_not_the_constants() -> None:
    tensors = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    constants = Constants({0: tensors[0]}, ())
    assert constants.are([tensors[0]]) and not constants.are([tensors[1]])


def test_constants_are_not_kept_alive() -> None:
    tensor = nn.Parameter(torch.ones(3))
    constants, seen = Constants({0: tensor}, ()), weakref.ref(tensor)
    del tensor
    gc.collect()
    assert seen() is None and constants.gone
