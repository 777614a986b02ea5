"""Products of two activations on random shapes and layouts, against float64."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmcompile as nmc
from nmcompile.kernels.spec import Product, Strides
from tests.support.examples import examples
from tests.support.kernel_runner import relative_error, run_operands

Floats = npt.NDArray[np.float32]
EXTENTS = st.sampled_from([1, 2, 5, 6, 7, 15, 16, 17, 48, 64, 65, 100, 197])


def strides(operand: int, view: Floats, whole: Floats) -> Strides:
    """Where a view (*lead, rows, columns) lies in an operand."""
    offset = (view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 4
    *lead, token, feature = (step // 4 for step in view.strides)
    return Strides(operand, offset, tuple(lead), token, feature)


@examples(12, 300)
@given(data=st.data())
def test_products_agree_with_float64(data: st.DataObject) -> None:
    draw = data.draw
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    rows, columns, depth = draw(EXTENTS), draw(EXTENTS), draw(EXTENTS)
    random = np.random.default_rng(draw(st.integers(0)))
    wholes, views = [], []
    for matrix in ((rows, depth), (depth, columns)):
        turned, shared = draw(st.booleans()), draw(st.booleans())
        own = matrix[::-1] if turned else matrix
        whole = random.standard_normal((*(() if shared else lead), *own), dtype=np.float32)
        view = whole.swapaxes(-1, -2) if turned else whole
        wholes.append(whole)
        views.append(np.broadcast_to(view, (*lead, *matrix)))
    shape = (*lead, rows, columns)
    places = (strides(i, v, w) for i, (v, w) in enumerate(zip(views, wholes, strict=True)))
    a, b = places
    spec = Product(lead, rows, columns, depth, (wholes[0].shape, wholes[1].shape), a, b, shape)
    found = run_operands("product", spec, wholes, shape)
    expected = views[0].astype(np.float64) @ views[1].astype(np.float64)
    assert relative_error(found, expected) < 2e-5


class Gram(nn.Module):
    """Of channels; of rows of a batch; of what is sliced out of one tensor; with a vector."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x.flatten(2)
        q, k = x[:, :4].permute(0, 2, 1, 3), x[:, 4:].permute(0, 2, 3, 1)
        return flat @ flat.mT, x @ x.mT, q @ k, torch.bmm(flat, flat.mT), flat @ flat[0, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_models_with_them_agree_with_torch(threads: int, tmp_path: Path) -> None:
    x = torch.randn(2, 8, 11, 19, generator=torch.Generator().manual_seed(0))
    result = nmc.compile(Gram().eval(), output=tmp_path / "m.nmc", example_inputs=(x,))
    assert result.report.other_operators is not None
    assert result.report.other_operators["matmul"] <= 1  # that with a vector
    found = nmc.runtime.load(tmp_path / "m.nmc", threads=threads).run(x.numpy())
    for one, expected in zip(found.values(), Gram()(x), strict=True):
        np.testing.assert_allclose(one, expected.numpy(), rtol=1e-4, atol=2e-4)
