"""The kit for a machine with a GPU: complete, and run here over an emulated driver."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nmcompile
from benchmarks import gpu_kit, models
from benchmarks.gpu import models as whole_models
from benchmarks.gpu import network
from benchmarks.gpu.contents import INDEX, Contents, Kit, dump
from benchmarks.gpu_kit_models import make_model
from nmcompile import runtime
from nmcompile.errors import ArtifactError, DeviceError, TargetError
from tests.support.bare_python import python_with_numpy
from tests.support.emulated_gpu.kit import emulated_driver, emulated_kit
from tests.support.fake_driver import need_no_driver

# Kernels in order: wgmma, sparse, dense of the 3x3, the same of the 1x1, dense of the stem.
MODES = {0: "skip", 2: "crash"}
THREE, ONE, STEM = "64->32 3x3/1 6² b2", "64->64 1x1/1 5² b2", "3->16 3x3/2 9² b2"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with_numpy(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_kit(tmp_path_factory.mktemp("kit"), MODES)


def bench(
    python: Path, kit: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-I", kit / "bench_gpu.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment,
    )


@pytest.fixture(scope="module")
def first_run(
    bare: Path, kit: Path, driver: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = bench(bare, kit, LD_LIBRARY_PATH=str(driver), EMULATED_CAPABILITY="90")
    result = kit / "results" / "nvidia-imaginary.json"
    assert result.is_file(), done.stderr
    return done, json.loads(result.read_text())


Run = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


def variants(result: dict[str, Any], layer: str) -> dict[str, dict[str, Any]]:
    (row,) = (row for row in result["parts"]["layers-2"]["rows"] if row["layer"] == layer)
    return {variant["method"]: variant for variant in row["variants"]}


def test_all_layers_are_exact_and_timed(first_run: Run) -> None:
    done, result = first_run
    right = [variants(result, ONE)[method] for method in ("wgmma", "sparse", "dense")]
    right += [variants(result, THREE)["sparse"], variants(result, STEM)["dense"]]
    for variant in right:
        assert variant["exact"] and variant["ms"] > 0 and variant["how"] == "graph"
        assert variant["error_norm"] < 1e-3  # float16's rounding
    assert sum(variant["chosen"] for variant in right) == 3
    assert result["parts"]["layers-2"]["state"] == "done"
    assert "torch missing: our figures only" in done.stderr


def test_a_wrong_kernel_and_one_that_loses_the_gpu_are_named_and_the_rest_goes_on(
    first_run: Run,
) -> None:
    done, result = first_run
    assert done.returncode == 1
    assert variants(result, THREE)["wgmma"]["failure"].startswith("2304 of 2304 whole numbers")
    assert "tried again" in variants(result, THREE)["dense"]["failure"]
    (failure,) = result["parts"]["layers-2"]["failures"]
    assert failure["job"] == THREE and failure["step"].startswith("dense ")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in failure["failure"]
    for text in ("2304 of 2304 whole numbers", "ILLEGAL_ADDRESS"):
        assert text in done.stdout
    (bar,) = (bar for bar in result["bars"] if bar["bar"] == "layers exact on whole numbers")
    assert (bar["state"], bar["met_by"], bar["of"]) == ("missed", 11, 13)


def test_sparser_patterns_run_through_the_same_kernels(first_run: Run) -> None:
    rows = first_run[1]["parts"]["patterns"]["rows"]
    assert {(row["layer"], row["pattern"]) for row in rows} == {
        (layer, pattern) for layer in (THREE, ONE) for pattern in ("1:4", "1:8", "1:16")
    }
    assert all(row["exact"] and row["chosen"] for row in rows)


def test_tables_are_also_a_file(first_run: Run, kit: Path) -> None:
    assert (kit / "results" / "nvidia-imaginary.md").read_text() in first_run[0].stdout


def test_single_parts_are_added_to_what_there_is(
    first_run: Run, bare: Path, kit: Path, driver: Path, tmp_path: Path
) -> None:
    shutil.copy(kit / "results" / "nvidia-imaginary.json", tmp_path)
    environment = {"LD_LIBRARY_PATH": str(driver), "EMULATED_CAPABILITY": "90"}
    bench(bare, kit, "--output", tmp_path, "--parts", "patterns", **environment)
    found = json.loads((tmp_path / "nvidia-imaginary.json").read_text())["parts"]
    assert found["layers-2"] == first_run[1]["parts"]["layers-2"]
    assert found["patterns"]["rows"] == first_run[1]["parts"]["patterns"]["rows"]


def test_without_captures_calls_are_launched_one_by_one(
    bare: Path, kit: Path, driver: Path, tmp_path: Path
) -> None:
    environment = {"LD_LIBRARY_PATH": str(driver), "EMULATED_CAPABILITY": "90"}
    environment["EMULATED_NO_CAPTURE"] = "1"
    bench(bare, kit, "--output", tmp_path, "--parts", "layers", **environment)
    result = json.loads((tmp_path / "nvidia-imaginary.json").read_text())
    variant = variants(result, ONE)["sparse"]
    assert variant["ms"] > 0 and variant["how"] == "loop"


def test_a_run_out_of_time_keeps_what_it_has(
    bare: Path, kit: Path, driver: Path, tmp_path: Path
) -> None:
    environment = {"LD_LIBRARY_PATH": str(driver), "EMULATED_CAPABILITY": "90"}
    done = bench(bare, kit, "--output", tmp_path, "--seconds", "1", **environment)
    assert done.returncode in (0, 1), done.stderr
    parts = json.loads((tmp_path / "nvidia-imaginary.json").read_text())["parts"]
    assert parts["patterns"]["state"] == "0 of 6 jobs: no time left"


# What a kit needs


def test_without_a_driver_nothing_runs(bare: Path, kit: Path, tmp_path: Path) -> None:
    need_no_driver()
    done = bench(bare, kit, "--output", tmp_path / "results")
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no NVIDIA driver (libcuda.so.1 cannot be loaded)")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ("80", "has no kernels for sm_80, only for sm_90a: run `make gpu-kit"),
        ("75", "has compute capability 7.5"),
    ],
)
def test_other_gpus_are_refused(
    capability: str, message: str, bare: Path, kit: Path, driver: Path, tmp_path: Path
) -> None:
    environment = {"LD_LIBRARY_PATH": str(driver), "EMULATED_CAPABILITY": capability}
    done = bench(bare, kit, "--output", tmp_path, **environment)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_without_numpy_or_a_kit_it_says_so(bare: Path, kit: Path, tmp_path: Path) -> None:
    done = bench(python_with_numpy(tmp_path / "none", numpy=False), kit)
    assert done.returncode == 2 and "numpy" in done.stderr and "Traceback" not in done.stderr
    shutil.copy(kit / "bench_gpu.py", tmp_path)
    done = bench(bare, tmp_path)
    assert done.returncode == 2 and "`make gpu-kit` writes one" in done.stderr


@pytest.mark.tool("ldd")
def test_all_libraries_but_the_drivers_resolve(kit: Path) -> None:
    libraries = sorted(kit.rglob("*.so*"))
    assert {"libtvm_runtime.so", "libtvm_runtime_cuda.so"} < {path.name for path in libraries}
    listed = subprocess.run(
        ["ldd", *libraries], capture_output=True, text=True, check=True, env={}
    ).stdout
    missing = [line for line in listed.splitlines() if "not found" in line]
    assert all("libcuda.so.1" in line for line in missing), missing


def test_a_kit_replaces_a_kit_and_nothing_else(kit: Path, tmp_path: Path) -> None:
    old = tmp_path / "kit"
    shutil.copytree(kit, old)
    (old / "results").mkdir(exist_ok=True)
    (old / "results" / "mine.json").touch()
    (old / "benchmarks" / "stale.py").touch()
    gpu_kit.write_kit(old, [], models=False)
    assert (old / "results" / "mine.json").exists()
    assert not (old / "benchmarks" / "stale.py").exists() and not (old / "sm_90a.zip").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(TargetError, match="something else than a kit"):
        gpu_kit.write_kit(other, [], models=False)


def test_a_kit_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit, "LIMIT", 1000)
    with pytest.raises(TargetError, match="over the 1000 that it may have"):
        gpu_kit.write_kit(tmp_path / "kit", [], models=False)
    assert not (tmp_path / "kit").exists()


# Whole models


@pytest.mark.tool("nvcc")
def test_artifacts_are_put_together_as_the_compiler_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_models, "SIZE", 32)
    monkeypatch.setattr(network, "resnet50", lambda: models._resnet((1, 1), True, 24))
    with zipfile.ZipFile(tmp_path / "sm_90a.zip", "w") as archive:
        model = make_model("sm_90a", 2, True, archive.writestr)
        contents = Contents("sm_90a", nmcompile.__version__, (), (model,))
        archive.writestr(INDEX, dump(contents))
    kit = Kit(tmp_path, "sm_90a")
    assert kit.contents == contents
    path = tmp_path / "model.nmc"
    whole_models.write_model(kit, model, "2:4", path)
    artifact = runtime.read_artifact(path)
    assert [spec.name for spec in artifact.manifest.params] == [r.name for r in model.recipes]
    x = torch.from_numpy(whole_models.model_input(2))
    for pattern, name in model.references.items():
        expected = np.frombuffer(kit.read(name), np.float32).reshape(2, 24)
        with torch.no_grad():
            np.testing.assert_allclose(network.build(pattern)(x), expected, rtol=1e-4, atol=1e-4)
    # 1:4 runs through the same library: only the weights are others.
    whole_models.write_model(kit, model, "1:4", path)
    sparser = runtime.read_artifact(path)
    assert sparser.library == artifact.library
    assert sparser.manifest.params == artifact.manifest.params
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        runtime.load(path)


def test_a_damaged_kit_is_named(tmp_path: Path) -> None:
    (tmp_path / "sm_80.zip").write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match=r"sm_80\.zip cannot be read"):
        Kit(tmp_path, "sm_80")
