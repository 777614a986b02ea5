"""Convolutions whose weights are computed in the model agree with torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import nmcompile as nmc
from tests.support.examples import examples


class Attended(nn.Module):
    """A sum of kernels, weighted by the image (Yang et al., CondConv, arXiv 1904.04971)."""

    def __init__(self, kernel: tuple[int, int], groups: int, **options: Any) -> None:
        super().__init__()
        self.groups, self.options = groups, options
        self.weigh = nn.Linear(8, 3)
        self.kernels = nn.Parameter(torch.randn(3, 12, 8 // groups, *kernel))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.weigh(x.mean((2, 3))), -1)[0]
        weight = (shares[:, None, None, None, None] * self.kernels).sum(0)
        found: Tensor = functional.conv2d(x, weight, groups=self.groups, **self.options)
        return found


class Tracker(nn.Module):
    """Looks for a template in an image, channel by channel and in all (SiamRPN++, 1812.11703)."""

    def forward(self, image: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
        alone = functional.conv2d(image, template.view(8, 1, 3, 3), groups=8)
        return alone, functional.conv2d(image, template.view(1, 8, 3, 3))


@examples(4)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    groups=st.sampled_from([1, 2]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 2),
)
def test_kernels_that_the_image_weighs(
    kernel: tuple[int, int], groups: int, stride: int, padding: int, dilation: int, batch: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    torch.manual_seed(batch)
    model = Attended(kernel, groups, stride=stride, padding=padding, dilation=dilation).eval()
    x, path = torch.randn(batch, 8, 9, 11), tmp_path_factory.mktemp("m") / "m.nmc"
    result = nmc.compile(model, output=path, example_inputs=(x,))
    assert "nn.conv2d" not in (result.report.other_operators or {})
    (found,) = nmc.runtime.load(path).run(x).values()
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


def test_a_template_that_is_an_input(tmp_path: Path) -> None:
    model, values = Tracker().eval(), (torch.randn(1, 8, 12, 13), torch.randn(1, 8, 3, 3))
    nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=values)
    session = nmc.runtime.load(tmp_path / "m.nmc")
    feeds = {spec.name: value for spec, value in zip(session.inputs, values, strict=True)}
    for found, expected in zip(session.run(feeds).values(), model(*values), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
