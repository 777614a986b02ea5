"""The commands with targets that are GPUs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from nmcompile.cli import app
from nmcompile.runtime import Call, gpu, write_artifact
from nmcompile.sparsity import parse_pattern, project
from tests.support.fake_cuda import Driver, pretend_gpu
from tests.support.manifests import SHAPE, manifest
from tests.support.runtime_models import affine_library
from tests.support.seed_modules import export_onnx
from tests.support.tiny_models import example


def nmc(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")


@pytest.fixture(scope="module")
def artifact(sparse_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "m.nmc"
    done = nmc("compile", sparse_onnx, "--target", "sm_80", "-o", path)
    assert "weights are rounded to float16: by at most 0.000" in done.stdout
    assert "4, 2 of them sparse" in done.stdout
    return path


@pytest.mark.tool("nvcc")
def test_artifact_says_what_it_needs(artifact: Path) -> None:
    document = json.loads(nmc("inspect", artifact, "--json").stdout)
    assert document["manifest"]["target"] == {
        "kind": "sm_80",
        "name": "sm_80",
        "cpu_features": [],
    }
    assert document["missing_cpu_features"] == []
    assert document["missing_gpu"].startswith("an NVIDIA GPU of compute capability 8.0")
    shown = nmc("inspect", artifact).stdout
    assert "this GPU  lacks an NVIDIA GPU of compute capability 8.0" in shown
    assert "target    sm_80\n" in shown


@pytest.mark.tool("nvcc")
def test_run_without_a_gpu_is_one_clear_error(artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", example().numpy())
    done = nmc("run", artifact, "-i", tmp_path / "x.npy", "-o", tmp_path / "out", code=1)
    assert "needs an NVIDIA GPU of compute capability 8.0" in done.stderr
    assert "found no NVIDIA driver" in done.stderr


class Reasons(nn.Module):
    """One layer for each reason not to run sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Conv2d(3, 64, 3, padding=1)
        self.good, self.broad, self.flat = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
        self.depth = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.window = nn.Conv2d(64, 64, (18, 1), padding=(9, 0))
        for layer, pattern in ((self.good, "2:4"), (self.broad, "4:8"), (self.flat, "2:4@flat")):
            weight = project(layer.weight.detach().numpy(), parse_pattern(pattern))
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.flat(self.broad(self.good(self.few(x))))
        out: torch.Tensor = self.window(self.depth(x))
        return out


def test_inspect_says_why_layers_do_not_run_sparse(tmp_path: Path) -> None:
    path = tmp_path / "reasons.onnx"
    onnx.save(export_onnx(Reasons().eval(), torch.randn(8, 3, 32, 32)), path)
    document = json.loads(nmc("inspect", path, "--target", "sm_80", "--json").stdout)
    layers = document["layers"]
    assert [layer["sparse"] for layer in layers] == [False, True, False, False, False, False]
    few, _, broad, flat, depth, window = (layer["reason"] for layer in layers)
    assert "3 input channels: under 16" in few
    assert "4:8 is not 2:4 along the input channels" in broad and "`nmc enforce`" in broad
    assert "its groups do not run along the input channels" in flat
    assert depth == "depthwise: one weight per tap, nothing to skip"
    assert "window of 18x1" in window and layers[-1]["kernel"] == "none"


def test_the_gpu_at_hand_names_the_target(
    sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gpu.Gpu("NVIDIA A10", 8, 6, 24 << 30)
    monkeypatch.setattr(gpu, "host", lambda: here)
    monkeypatch.setattr(gpu, "driver_version", lambda: (13, 0))
    document = json.loads(nmc("inspect", sparse_onnx, "--target", "cuda", "--json").stdout)
    kernels = {layer["kernel"] for layer in document["layers"]}
    assert all(kernel.endswith("__sm_86") for kernel in kernels)
    rows = json.loads(nmc("targets", "--json").stdout)["targets"]
    runnable = [row["name"] for row in rows if not row["missing_gpu"]]
    assert runnable == ["avx512", "avx512_vnni", "avx512_bf16", "avx512_amx", "sm_86"]
    assert "--target cuda: the one of these" in nmc("targets").stdout


@pytest.mark.tool("nvcc")
def test_compiling_for_the_gpu_at_hand_says_which_it_is(
    sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "host", lambda: gpu.Gpu("NVIDIA L4", 8, 9, 24 << 30))
    monkeypatch.setattr(gpu, "driver_version", lambda: (13, 0))
    path = tmp_path / "m.nmc"
    done = nmc("compile", sparse_onnx, "--target", "cuda", "-o", path, "--json")
    assert json.loads(done.stdout)["target"] == "sm_89"
    found = json.loads(nmc("inspect", path, "--json").stdout)
    assert found["manifest"]["target"]["kind"] == "sm_89" and found["missing_gpu"] == ""


@pytest.mark.parametrize("command", ["inspect", "compile", "bench"])
def test_without_a_gpu_the_message_names_the_targets(
    command: str, sparse_onnx: Path, tmp_path: Path
) -> None:
    option = "--targets" if command == "bench" else "--target"
    rest: list[str | Path] = ["-o", tmp_path / "m.out"] if command != "inspect" else []
    done = nmc(command, sparse_onnx, option, "cuda", *rest, code=2 if command == "bench" else 1)
    assert "found no NVIDIA driver" in done.stderr
    assert f"{option} sm_80 for 8.0 (A100, A30), sm_86 for 8.6" in done.stderr


def test_a_gpu_that_no_kernels_are_for_is_named(
    sparse_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "host", lambda: gpu.Gpu("NVIDIA Turing", 7, 5, 8 << 30))
    done = nmc("inspect", sparse_onnx, "--target", "cuda", code=1)
    assert "no kernels for NVIDIA Turing of compute capability 7.5" in done.stderr


def test_bench_shows_layers_without_roofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is one for CPUs, the GPU is made up: what counts is what is made of the times."""
    pretend_gpu(monkeypatch, Driver())
    layer = {"name": "scale", "pattern": "2:4", "density": 0.5, "macs": 10_000_000}
    described = replace(
        manifest(kind="sm_80", cpu_features=(), calls=(Call("multiply", "scale"),)), layers=(layer,)
    )
    weights = {name: np.ones(SHAPE, np.float32) for name in ("scale", "shift")}
    path = tmp_path / "m.nmc"
    write_artifact(path, described, affine_library(tmp_path), weights)
    options = ("--rounds", "2", "--no-pin", "--layers", "-o", tmp_path / "run.json")
    document = json.loads(nmc("bench", path, *options, "--json").stdout)
    (case,) = document["cases"]
    row = next(row for row in case["layers"] if row["layer"] == "scale")
    assert row["ms"] == 1.0  # between two events of that driver
    assert (row["nonzero_gflops"], row["dense_equivalent_gflops"]) == (10.0, 20.0)
    assert row["roof"] is row["roof_share"] is None
    shown = nmc("bench", path, *options).stdout
    assert "dense-equivalent" in shown and "roofs of this machine" not in shown
    done = nmc("bench", path, *options, "--plot", tmp_path / "p.png", code=1)
    assert "under its CPU's roofs" in done.stderr


def test_missing_nvcc_is_found_before_anything_is_done(
    sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = nmc("compile", sparse_onnx, "--target", "sm_90a", "-o", tmp_path / "m.nmc", code=1)
    assert "needs nvcc on this machine" in done.stderr
    assert not (tmp_path / "m.nmc").exists()
