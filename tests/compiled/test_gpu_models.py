"""Whole models for GPUs: run call by call in the emulator, against torch; and built for real."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax

import nmcompile
from nmcompile import runtime
from nmcompile.errors import DeviceError, UnsupportedOperatorError
from nmcompile.passes.lowering.fallback import is_others
from nmcompile.passes.lowering.gpu import (
    fuse_for_gpu,
    gpu_target,
    schedule_for_gpu,
    takes_memory,
)
from nmcompile.runtime import gpu
from tests.support.examples import crossed
from tests.support.gpu_interpreter import lower_for_gpu, run_model
from tests.support.gpu_models import MODELS, Residuals, pruned
from tests.support.tiny_models import tiny_net

TOLERANCE = 1e-2  # of the range of the output: float16 in between
ARCHITECTURES = ("sm_80", "sm_90a")


def assert_like_torch(model: nn.Module, shape: tuple[int, ...], arch: str) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module, lowered = lower_for_gpu(copy.deepcopy(model), x, arch)
    found = run_model(module, lowered, x.numpy(), arch)
    with torch.no_grad():
        expected = model.eval()(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32 and ours.shape == tuple(theirs.shape)
        span = float(theirs.max() - theirs.min())
        assert np.abs(ours - theirs.numpy()).max() < TOLERANCE * span
    return lowered


@pytest.mark.parametrize(("name", "arch"), crossed(list(MODELS), ARCHITECTURES[::-1]))
def test_model_computes_what_torch_does(name: str, arch: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    assert_like_torch(pruned(make(), "2:4"), shape, arch)


@pytest.mark.parametrize("pattern", ["dense", "1:4"])
def test_other_patterns_compute_what_torch_does(pattern: str) -> None:
    lowered = assert_like_torch(tiny_net(pattern), (1, 3, 16, 16), "sm_80")
    sparse = [call.choice.kernel.sparse for call in lowered.calls]
    assert any(sparse) == (pattern == "1:4")


@pytest.mark.parametrize(("name", "changes"), [("residual", 1), ("inverted", 2)])
def test_layout_changes_at_the_ends_only(name: str, changes: int) -> None:
    make, shape = MODELS[name]
    _, lowered = lower_for_gpu(make(), torch.randn(shape), "sm_80")
    assert lowered.module["main"].script().count("permute_dims") == changes


def test_residual_is_added_in_place_by_the_kernel() -> None:
    _, lowered = lower_for_gpu(Residuals(), torch.randn(1, 3, 33, 33), "sm_80")
    assert [call.group.op for call in lowered.calls].count("conv2d") == 6
    assert lowered.module["main"].script().count("call_tir_inplace") == 2
    assert "add" not in lowered.leftovers


def test_a_window_that_no_kernel_takes_is_named(tmp_path: Path) -> None:
    reason = r"no kernel for conv2d on float16: window of 18x1"
    with pytest.raises(UnsupportedOperatorError, match=reason):
        nmcompile.compile(
            nn.Conv2d(3, 8, (18, 1)),
            output=tmp_path / "m.nmc",
            target="sm_80",
            example_inputs=(torch.randn(1, 3, 20, 20),),
        )


@pytest.mark.parametrize("operator", [relax.op.topk, relax.op.cumsum])
def test_operators_that_tvm_has_for_cpus_alone_are_named(operator: Callable[..., Any]) -> None:
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((4, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(operator(x, axis=1))
        builder.emit_func_output(result)
    name = operator.__name__
    with pytest.raises(
        UnsupportedOperatorError, match=rf"relax\.{name} .* no code for on this target"
    ):
        fuse_for_gpu(builder.get(), gpu_target("sm_80"))


def test_windows_of_changing_size_get_threads_but_no_cuda_graph() -> None:
    """TVM has no rule for them, and keeps their sums in memory that no capture may take."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((3, 2)))
    module, _ = lower_for_gpu(model, torch.randn(1, 3, 10, 10), "sm_80")
    scheduled = schedule_for_gpu(module, gpu_target("sm_80"))
    names = [var.name_hint for var, func in scheduled.functions_items() if is_others(var, func)]
    assert "adaptive_avg_pool2d" in names
    assert takes_memory(scheduled)


# ---- Built with nvcc


class Positions(nn.Module):
    """Reductions that cannot be divided among threads, and comparisons that NaN fails."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.argmax(1), x.argmin(), torch.where(x == x, x - 1, 0 * x)


@pytest.mark.tool("nvcc")
def test_positions_of_maxima_are_built(tmp_path: Path) -> None:
    x, path = torch.ones(4, 64), tmp_path / "m.nmc"
    nmcompile.compile(Positions(), output=path, example_inputs=x, target="sm_80")
    outputs = runtime.read_artifact(path).manifest.outputs
    assert [(spec.shape, spec.dtype) for spec in outputs] == [
        ((4,), "int64"), ((), "int64"), ((4, 64), "float32")
    ]  # fmt: skip


@pytest.mark.tool("nvcc")
def test_zeros_are_ignored_where_dense_is_asked_for(tmp_path: Path) -> None:
    result = nmcompile.compile(
        tiny_net("2:4"),
        output=tmp_path / "m.nmc",
        target="sm_80",
        pattern="dense",
        example_inputs=(torch.randn(1, 3, 16, 16),),
    )
    assert not any(layer.sparse for layer in result.report.layers)


OTHERS = [("residual", arch) for arch in ("sm_86", "sm_89")]


@pytest.mark.tool("nvcc")
@pytest.mark.parametrize(("name", "arch"), [*crossed(list(MODELS), ARCHITECTURES), *OTHERS])
def test_model_builds_to_an_artifact_that_needs_a_gpu(
    name: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    make, shape = MODELS[name]
    path = tmp_path / "m.nmc"
    nmcompile.compile(make(), output=path, target=arch, example_inputs=(torch.randn(shape),))
    artifact = runtime.read_artifact(path)
    assert artifact.manifest.target == runtime.TargetInfo(arch, arch, ())
    assert [spec.dtype for spec in artifact.manifest.inputs] == ["float32"]
    library = bytes(artifact.library)
    assert b"__global__" not in library
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU of .*, and its driver: found no"):
        runtime.load(path)


@pytest.mark.tool("nvcc")
def test_report_says_how_much_rounding_changed(tmp_path: Path) -> None:
    model, path = tiny_net("2:4"), tmp_path / "m.nmc"
    with torch.no_grad():
        model.narrow.weight[0, 0] = 1.0
        model.narrow.weight[0, 1] = 0.1 + 2.0**-13
    result = nmcompile.compile(
        model, output=path, target="sm_80", example_inputs=(torch.randn(1, 3, 16, 16),)
    )
    (note,) = result.report.notes
    share = re.search(
        r"rounded to float16: by at most (\S+) of the largest weight .* in (\w+)", note
    )
    assert share is not None
    assert 0 < float(share[1]) <= 2.0**-11  # half a unit in the last place of the largest weight
