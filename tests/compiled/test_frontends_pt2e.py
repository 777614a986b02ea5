"""Models quantised with PT2E: integer weights in the FX graph and in Relax, and eager's results."""

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nmcompile import inspect
from nmcompile.errors import UnsupportedOperatorError
from nmcompile.folding import open_folded
from nmcompile.frontends import open_model
from nmcompile.passes.permute_channels import PermuteChannels
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import NM, parse_pattern, project
from tests.support.quantised import SHAPE, compiled, images, mixed_net, weight_dtypes

X = torch.zeros(SHAPE)


def _quantizer(name: str) -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    from torchao.testing.pt2e import _xnnpack_quantizer

    if name == "x86":
        x86 = x86_inductor_quantizer.X86InductorQuantizer()
        return x86.set_global(x86_inductor_quantizer.get_default_x86_inductor_quantization_config())
    config = _xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    return _xnnpack_quantizer.XNNPACKQuantizer().set_global(config)


@functools.cache
def quantised(name: str) -> Any:
    """The network of the quantised ONNX models, with one layer of pattern 2:4."""
    net = mixed_net()
    with torch.no_grad():
        pruned = project(net.wide.weight.detach().numpy(), parse_pattern("2:4"))
        net.wide.weight.copy_(torch.from_numpy(pruned))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Seconds, which nobody who collects the tests has to spend.
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        prepared = prepare_pt2e(torch.export.export(net, (X,)).module(), _quantizer(name))
        for image in images(4):
            prepared(torch.from_numpy(image))
        return convert_pt2e(prepared)


@pytest.mark.parametrize("name", ["x86", "xnnpack"])
def test_artifacts_agree_with_eager(name: str, tmp_path: Path) -> None:
    model = quantised(name)
    program = torch.export.export(model, (X,)) if name == "x86" else model
    session = compiled(program, tmp_path, example_inputs=(X,))
    # XNNPACK's quantiser rounds the logits too, x86's leaves them as they are.
    steps = [
        node.args[1]
        for node in model.graph.nodes
        if "dequantize_per_tensor" in str(node.target)
        and any(user.op == "output" for user in node.users)
    ]
    for image in images(4, seed=9):
        (found,) = session.run({"x": image}).values()
        with torch.no_grad():
            expected = model(torch.from_numpy(image)).numpy()
        apart = np.abs(found - expected).max()
        assert apart <= (1.01 * steps[0] if steps else 1e-3 * np.ptp(expected))


@pytest.mark.parametrize("name", ["x86", "xnnpack"])
def test_layers_have_their_integers_and_patterns_are_theirs(name: str) -> None:
    source, _ = open_folded(quantised(name), (X,))
    check_graph(source.graph)
    layers = {layer.name: layer for layer in source.graph.layers()}
    assert set(layers) == {"stem", "wide", "depth", "narrow", "head"}
    for layer in layers.values():
        assert layer.integers is not None and layer.integers.values.dtype == np.int8
        np.testing.assert_array_equal(layer.weight, layer.integers.real)
    assert set(weight_dtypes(source.to_relax())) == {"int8"}
    rows = {row.name: row for row in inspect(quantised(name), example_inputs=(X,)).layers}
    assert (rows["wide"].pattern, rows["narrow"].pattern) == ("2:4", "dense")


class Spelled(nn.Module):
    """Quantisation written out: scales in tensors, narrow ranges, slices, matrices turned."""

    scale: Tensor
    zero: Tensor
    scales: Tensor
    zeros: Tensor
    integers: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("scale", torch.tensor(0.0371))
        self.register_buffer("zero", torch.tensor(5))
        self.register_buffer("scales", torch.linspace(0.001, 0.02, 6, dtype=torch.float64))
        self.register_buffer("zeros", torch.arange(6) - 2)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(-127, 128, (6, 8), generator=generator)
        self.register_buffer("integers", drawn.to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        given = (self.scale, self.zero, -128, 127, torch.int8)
        if self.form == "tensors":
            q = ops.quantize_per_tensor.tensor(x, *given)
            y: Tensor = ops.dequantize_per_tensor.tensor(q, *given)
            return y
        if self.form == "narrow":
            limited = (0.0371, 5, -100, 90, torch.int8)
            y = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *limited), *limited)
            return y
        if self.form == "slices":
            of_slices = (self.scales, self.zeros, 1, -128, 127, torch.int8)
            x = x.reshape(8, 6)
            y = ops.dequantize_per_channel(ops.quantize_per_channel(x, *of_slices), *of_slices)
            return y
        if self.form == "turned":
            weight = ops.dequantize_per_channel(
                self.integers, self.scales, self.zeros, 0, -128, 127, torch.int8
            )
            y = x.reshape(6, 8) @ weight.t()
            return y
        scale, zero = ops.choose_qparams.tensor(x, -128, 127, 1e-5, torch.int8)
        y = ops.dequantize_per_tensor.tensor(
            ops.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8),
            scale, zero, -128, 127, torch.int8,
        )  # fmt: skip
        return y


@pytest.mark.parametrize("form", ["tensors", "narrow", "slices", "turned"])
def test_spellings(form: str, tmp_path: Path) -> None:
    model = Spelled(form).eval()
    x = torch.randn((1, 48), generator=torch.Generator().manual_seed(1)) * 3
    (found,) = compiled(model, tmp_path, example_inputs=(x,)).run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-5, atol=1e-5)
    if form == "turned":
        source, _ = open_folded(model, (x,))
        assert weight_dtypes(source.to_relax()) == ["int8"]


def test_steps_that_are_computed_are_refused_by_name() -> None:
    model = Spelled("dynamic").eval()
    with pytest.raises(UnsupportedOperatorError, match="quantized_decomposed"):
        open_model(model, example_inputs=(torch.zeros(1, 48),)).to_relax()


def test_channels_of_quantised_models_are_reordered() -> None:
    model = quantised("xnnpack")
    source, _ = open_folded(model, (X,))
    assert PermuteChannels(NM(1, 4), {"narrow", "depth"}).call(source.graph).modified
    check_graph(source.graph)
    folded = source.native()
    for image in map(torch.from_numpy, images(3)):
        with torch.no_grad():
            np.testing.assert_allclose(folded(image), model(image), rtol=1e-5, atol=1e-5)
