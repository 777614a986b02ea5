"""Tuning on a GPU, which is made up: its driver runs kernels in the emulator, its clock is ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nmcompile.cli import app
from nmcompile.errors import DeviceError, InputError
from nmcompile.kernels.catalog import choose
from nmcompile.kernels.cuda.build import Launch
from nmcompile.kernels.cuda.launch import run_on_gpu
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, Linear
from nmcompile.runtime import gpu
from nmcompile.runtime.cuda import Cuda
from nmcompile.sparsity import NM, Dense, Detection
from nmcompile.targets import find_target
from nmcompile.tuning import measure_gpu, tuner
from nmcompile.tuning.database import Tuned, TuningDatabase, plain_config
from nmcompile.tuning.gpu import GpuMeasurer, gpu_database
from nmcompile.tuning.tuner import Layer
from tests.support.fake_cuda import Driver, as_source, use_driver
from tests.support.kernel_runner import reference
from tests.support.tensor_core_runner import ROWS, in_memory, make_problem, run_row, source_of

CONV = Conv2d(1, 64, 6, 6, 64, (3, 3), padding=(1, 1, 1, 1))
EPILOGUE = Epilogue(True, True, Activation("relu"))
SPARSE = next(row for row in ROWS if row.sparse)
HERE = "NVIDIA Imaginary 8.0"


def sparse_problem(conv: Conv2d = CONV) -> Problem:
    problem, _, _ = make_problem(SPARSE, conv, EPILOGUE, 0, whole=True)
    return problem


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Few candidates, each run once or twice: emulation is slow."""
    made = Driver()
    use_driver(monkeypatch, made)
    monkeypatch.setattr(measure_gpu, "open_cuda", Cuda)
    monkeypatch.setattr(measure_gpu, "compile_cubin", as_source)
    for name, value in {"ROUNDS": (1, 1), "FLUSH_BYTES": 1024}.items():
        monkeypatch.setattr(measure_gpu, name, value)
    for name, value in {"CANDIDATES": 3, "OTHERS": 1, "HOPELESS": 100.0}.items():
        monkeypatch.setattr(tuner, name, value)
    return made


def tune(problem: Problem, path: Path | None = None, target: str = "sm_80") -> Any:
    database = gpu_database(path, find_target(target), tune=True)
    tuner.tune([Layer("conv", "conv2d", problem)], target, database, GpuMeasurer())
    return database.choose("conv2d", target, problem), database


def test_the_fastest_on_the_gpu_is_taken_and_kept(driver: Driver, tmp_path: Path) -> None:
    problem, path = sparse_problem(), tmp_path / "tuning.json"
    second = SPARSE.configs(problem)[1].config
    # What the second candidate of the model alone has.
    driver.cost = lambda launch: 1.0 if takes(launch, second, problem) else 5.0
    choice, database = tune(problem, path)
    assert (choice.kernel, choice.config) == (SPARSE, second)
    entry = database.find(problem)
    # A millisecond for the event itself.
    assert (entry.ms, entry.default_ms) == (launches(second) + 1.0, 5.0 * launches_of(0) + 1.0)
    assert list(json.loads(path.read_text())["cpus"]) == [HERE]
    assert not driver.arrays and not driver.times, "all memory and events are given back"


def launches(config: Any) -> int:
    return 2 if config.splits > 1 else 1


def launches_of(rank: int) -> int:
    return launches(SPARSE.configs(sparse_problem())[rank].config)


def takes(launch: Launch, config: Any, problem: Problem) -> bool:
    """Whether a launch is one of the function with these tiles."""
    source = source_of(SPARSE, SPARSE.lower(problem, config))
    return any(
        (launch.grid, launch.block, launch.shared_bytes) == (own.grid, own.block, own.shared_bytes)
        for own in source.launches
    )


def test_what_computes_something_else_is_not_taken(driver: Driver) -> None:
    problem = sparse_problem()
    second = SPARSE.configs(problem)[1].config
    driver.cost = lambda launch: 1.0 if takes(launch, second, problem) else 5.0
    driver.broken = lambda launch: takes(launch, second, problem)
    choice, _ = tune(problem)
    assert choice.config != second


def test_dense_kernels_compete(driver: Driver) -> None:
    problem = sparse_problem()
    driver.cost = lambda launch: 5.0
    dense = next(row for row in ROWS if row.target == "sm_80" and not row.sparse)
    favourite = dense.configs(problem)[0].config
    source = source_of(dense, dense.lower(problem, favourite))
    shared = {launch.shared_bytes for launch in source.launches}
    driver.cost = lambda launch: 1.0 if launch.shared_bytes in shared else 5.0
    choice, _ = tune(problem)
    assert choice.kernel is dense
    assert choice.reason == f"measured slower than {dense.name}"


def test_matrix_products_are_tuned(driver: Driver) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
    linear = Problem(
        Linear((3,), 64, 40), Epilogue(), weight, None, Detection(Dense(), (), 1.0), "float16"
    )
    database = gpu_database(None, find_target("sm_80"), tune=True)
    tuner.tune([Layer("fc", "linear", linear)], "sm_80", database, GpuMeasurer())
    choice = database.choose("linear", "sm_80", linear)
    assert choice.kernel.name == "linear_f16_dense__sm_80" and database.find(linear) is not None


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)])
def test_candidates_fit_a_small_gpu(driver: Driver, capability: tuple[int, int]) -> None:
    """The driver refuses more shared memory than a block can have."""
    driver.capability = capability
    target = "sm_86" if capability == (8, 6) else "sm_89"
    choice, _ = tune(sparse_problem(), target=target)
    assert choice.kernel.target == target


def test_more_shared_memory_than_a_block_can_have_is_refused(driver: Driver) -> None:
    driver.capability = (8, 6)
    problem = sparse_problem()
    config = max(SPARSE.configs(problem), key=lambda c: c.config.pixels * c.config.channels).config
    source = source_of(SPARSE, SPARSE.lower(problem, config))
    with pytest.raises(DeviceError, match="answers cuFuncSetAttribute with error 1"):
        run_on_gpu(Cuda(), source, as_source(source.text, "sm_80"), {})


def test_full_memory_says_so(driver: Driver) -> None:
    driver.memory = 10_000
    with pytest.raises(DeviceError, match=r"memory of the GPU is full.*cuMemAlloc.*nvidia-smi"):
        tune(sparse_problem())
    assert driver.contexts == 0


def test_what_is_launched_is_what_is_emulated(driver: Driver) -> None:
    """Grid, block, shared memory and the order of arguments, for two launches with everything."""
    problem, x, residual = make_problem(SPARSE, CONV, EPILOGUE, 0, whole=True)
    assert residual is not None
    config = next(c.config for c in SPARSE.configs(problem) if c.config.splits > 1)
    lowered = SPARSE.lower(problem, config)
    source = source_of(SPARSE, lowered)
    buffers = {
        **{name: np.ascontiguousarray(array) for name, array in lowered.arrays.items()},
        "x": in_memory(x),
        "residual": in_memory(residual),
        "scratch": np.full(lowered.scratch, np.nan, np.float32),
        "out": np.full((1, 6, 6, 64), np.nan, np.float16),
    }
    run_on_gpu(Cuda(), source, as_source(source.text, "sm_80"), buffers)
    found = buffers["out"].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, reference(problem, x, residual).astype(np.float16))
    np.testing.assert_array_equal(found, run_row(SPARSE, problem, x, residual, config))


# ---- Which measurements count


def test_tuning_needs_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    with pytest.raises(DeviceError, match=r"tuning for the target sm_80 needs .*found no NVIDIA"):
        gpu_database(None, find_target("sm_80"), tune=True)


def test_tuning_on_another_gpu_is_refused(driver: Driver) -> None:
    with pytest.raises(DeviceError, match=r"sm_90a needs .* 9.0 .*found NVIDIA Imaginary of 8.0"):
        gpu_database(None, find_target("sm_90a"), tune=True)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """What three GPUs and a CPU have found."""
    path, problem = tmp_path / "tuning.json", sparse_problem()
    worst = plain_config(SPARSE.configs(problem)[-1].config)
    for machine in (HERE, "NVIDIA L4 8.9", "NVIDIA L40 8.9", None):
        TuningDatabase(path, machine).add(problem, Tuned(SPARSE.name, worst, 1.0, 2.0))
    return path


def test_without_a_gpu_the_only_one_of_the_architecture_counts(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    problem = sparse_problem()
    database = gpu_database(measured, find_target("sm_80"), tune=False)
    choice = database.choose("conv2d", "sm_80", problem)
    assert choice.config == SPARSE.configs(problem)[-1].config
    assert choice.config != choose("conv2d", "sm_80", problem).config
    with pytest.raises(InputError, match=r"has 2 GPUs of .* 8.9 .*: NVIDIA L4 8.9, NVIDIA L40"):
        gpu_database(measured, find_target("sm_89"), tune=False)
    with pytest.raises(InputError, match=r"has no GPUs of .* 9.0 .*; expected one: tune with"):
        gpu_database(measured, find_target("sm_90a"), tune=False)


def test_the_gpu_at_hand_counts_where_it_was_measured(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "host", lambda: gpu.Gpu("NVIDIA L40", 8, 9, 48 << 30))
    database = gpu_database(measured, find_target("sm_89"), tune=False)
    assert database.find(sparse_problem()) is not None


def test_patterns_are_told_apart() -> None:
    database, problem = TuningDatabase(None, HERE), sparse_problem()
    config = plain_config(SPARSE.configs(problem)[0].config)
    database.add(problem, Tuned(SPARSE.name, config, 1.0, 1.0))
    other, _, _ = make_problem(SPARSE, CONV, EPILOGUE, 1, whole=True)
    assert other.detection is not None and other.detection.pattern == NM(1, 4)
    assert database.find(other) is None


# ---- As users meet it


@pytest.mark.tool("nvcc")
def test_compile_tunes_on_the_gpu_at_hand(
    driver: Driver, sparse_onnx: Path, tmp_path: Path
) -> None:
    database, output = tmp_path / "tuning.json", tmp_path / "m.nmc"
    words = ["compile", str(sparse_onnx), "-o", str(output), "--target", "cuda", "--tune"]
    words += ["--tuning-db", str(database)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "tuning: times on the GPU" in done.stdout
    entries = json.loads(database.read_text())["cpus"][HERE]
    assert len(entries) == 4  # three convolutions and the classifier; poolings have no tiles
    before = database.read_bytes()
    again = CliRunner().invoke(app, [*words, "--json"])
    assert again.exit_code == 0 and database.read_bytes() == before
    assert len(json.loads(again.stdout)["tuning"]) == 4


def test_compile_without_a_gpu_says_so_before_anything_is_done(
    sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    output = tmp_path / "m.nmc"
    words = ["compile", str(sparse_onnx), "-o", str(output), "--target", "sm_80", "--tune"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "tuning for the target sm_80 needs an NVIDIA GPU" in done.output
    assert not output.exists()
