"""Every row of the torch table has samples that contain its operator and agree with torch."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import nmcompile
from nmcompile.frontends.torch_frontend import to_graph
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.operators.torch.settle import doubt
from nmcompile.passes.operators.torch.table import TABLE
from tests.conformance.torch_formulas import FORMULAS, WRITTEN
from tests.conformance.torch_samples import REWRITTEN, SAMPLES, Function, tensors_of

Sample = tuple[str, Function, torch.dtype]
BATCH = 60


def samples(rest: bool = False) -> list[Sample]:
    """Each function in float32 or the first of the row's dtypes; with `rest`, in the others."""
    found = []
    for row, functions in SAMPLES.items():
        names = sorted(TABLE[row].dtypes, key=lambda name: (name != "float32", name))
        for function in functions:
            typed = "z" in parameters(function)
            chosen = (names[1:] if typed else []) if rest else (names[:1] if typed else ["float32"])
            found += [(row, function, getattr(torch, name)) for name in chosen]
    return found


def parameters(function: Function) -> list[str]:
    """The tensors that a sample takes; what has a default is its own."""
    every = inspect.signature(function).parameters.values()
    return [entry.name for entry in every if entry.default is entry.empty]


class Batch(nn.Module):
    """Many samples as one model; what numpy has no dtype for is cast at both ends."""

    def __init__(self, batch: Sequence[Sample]) -> None:
        super().__init__()
        self.batch = batch

    def inputs(self) -> tuple[Tensor, ...]:
        given = [tensors_of(p, dtype) for _, f, dtype in self.batch for p in parameters(f)]
        return tuple(t.float() if t.dtype is torch.bfloat16 else t for t in given)

    def forward(self, *given: Tensor) -> list[Tensor]:
        results, rest = [], list(given)
        for _, function, dtype in self.batch:
            named = {name: rest.pop(0) for name in parameters(function)}
            if dtype is torch.bfloat16:
                named |= {name: named[name].to(dtype) for name in ("z", "a") if name in named}
            results += pytree.tree_leaves(function(**named))
        return [r.float() if r.dtype is torch.bfloat16 else r for r in results]


def operators(model: Batch, believed: bool) -> set[str]:
    """Those of the exported graph that are believed in, or those that are not."""
    graph = FxGraph(to_graph(model, model.inputs()))
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    return {str(node.target) for node in nodes if (doubt(graph, node) is None) is believed}


def check(batch: Sequence[Sample], folder: Path, believed: bool = True) -> None:
    model = Batch(batch).eval()
    inputs = model.inputs()
    assert {row for row, _, _ in batch} <= operators(model, believed)
    # Nothing of it goes by way of ONNX, which would hide what is not rewritten.
    nmcompile.compile(model, output=folder / "m.nmc", example_inputs=inputs, rest="none")
    session = nmcompile.runtime.load(folder / "m.nmc", threads=1)
    names = [spec.name for spec in session.inputs]
    found = list(session.run(dict(zip(names, (t.numpy() for t in inputs), strict=True))).values())
    with torch.no_grad():
        wanted: list[Any] = [tensor.numpy() for tensor in model(*inputs)]
    for place, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, place
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=str(place))


def batches(rest: bool = False) -> list[list[Sample]]:
    every = samples(rest)
    return [every[start : start + BATCH] for start in range(0, len(every), BATCH)]


def test_every_row_has_samples() -> None:
    assert set(SAMPLES) == set(TABLE)


@pytest.mark.parametrize("batch", batches(), ids=lambda batch: batch[0][0])
def test_rows_agree_with_torch(batch: list[Sample], tmp_path: Path) -> None:
    check(batch, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("batch", batches(rest=True), ids=lambda batch: batch[0][0])
def test_rows_agree_with_torch_in_their_other_dtypes(batch: list[Sample], tmp_path: Path) -> None:
    check(batch, tmp_path)


@pytest.mark.parametrize("calls", [REWRITTEN, WRITTEN, FORMULAS], ids=["rows", "ours", "torch's"])
def test_what_is_rewritten_agrees_with_torch(calls: dict[str, Function], tmp_path: Path) -> None:
    check([(row, call, torch.float32) for row, call in calls.items()], tmp_path, False)
