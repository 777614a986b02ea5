"""Every tensor-core row and tile variant compiles for its GPU, fits its registers, and uses it."""

import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tvm_ffi

from nmcompile.errors import TargetError
from nmcompile.kernels.catalog import Kernel
from nmcompile.kernels.cuda import build as cuda_build
from nmcompile.kernels.cuda.build import Cubin, CudaSource, compile_cubin
from nmcompile.kernels.sparse_tensor_core.tiles import TileConfig
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from tests.conftest import missing_tool
from tests.support.tensor_core_runner import (
    ROWS,
    VARIANTS,
    make_problem,
    method_of,
    source_of,
    usual_variants,
    variant_name,
)

REGISTERS_OF_SM = 65536
# What takes the most registers: taps that change within a slice, and everything fused.
CONV = Conv2d(2, 72, 15, 15, 136, (3, 3), (2, 2), (1, 1, 1, 1))
EPILOGUE = Epilogue(True, True, Activation("silu"))
POINTWISE = Conv2d(2, 64, 15, 15, 136, (1, 1))
INSTRUCTIONS = {"dense": "HMMA.16816.F32", "sparse": "HMMA.SP.16832.F32", "wgmma": "HGMMA.SP.64x"}


def nvdisasm() -> str:
    """The disassembler: on PATH, or where the wheel puts it, which is not on PATH."""
    path = shutil.which("nvdisasm")
    if path is not None:
        return path
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        missing_tool("nvdisasm", "pip install nvidia-cuda-nvdisasm")
    return str(next(file for file in files if Path(file).name == "nvdisasm").locate())


def disassemble(cubin: Cubin, folder: Path) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin.data)
    command = [nvdisasm(), "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def build(kernel: Kernel, conv: Conv2d, tile: TileConfig) -> Cubin:
    problem, _, _ = make_problem(kernel, conv, EPILOGUE, 0, whole=True)
    source = source_of(kernel, kernel.lower(problem, tile))
    cubin = compile_cubin(source.text, kernel.target)
    assert set(cubin.resources) == {launch.kernel for launch in source.launches}
    return cubin


@pytest.mark.tool("nvcc")
@pytest.mark.parametrize(("kernel", "tile"), usual_variants(), ids=variant_name)
def test_variant_compiles_without_spills_to_tensor_core_code(
    kernel: Kernel, tile: TileConfig, tmp_path: Path
) -> None:
    cubin = build(kernel, CONV, tile)
    for resources in cubin.resources.values():
        assert resources.spilled == 0
        assert resources.registers * tile.threads * tile.resident <= REGISTERS_OF_SM
    code = disassemble(cubin, tmp_path)
    for method, instruction in INSTRUCTIONS.items():
        assert (instruction in code) == (method == method_of(kernel))
    assert "LDGSTS.E.BYPASS" in code


@pytest.mark.tool("nvcc")
@pytest.mark.parametrize(
    "kernel",
    [  # the others have the code of sm_80
        pytest.param(row, marks=[pytest.mark.long] * (row.target in ("sm_86", "sm_89")))
        for row in ROWS
    ],
    ids=variant_name,
)
def test_split_and_pointwise_kernels_do_not_spill(kernel: Kernel) -> None:
    tiles = [tile for row, tile in VARIANTS if row is kernel]
    cubins = [build(kernel, POINTWISE, tiles[1])]
    cubins.append(build(kernel, CONV, replace(tiles[2], splits=3)))
    for cubin in cubins:
        assert all(resources.spilled == 0 for resources in cubin.resources.values())


@pytest.mark.tool("nvcc")
def test_source_that_does_not_compile_is_reported() -> None:
    with pytest.raises(TargetError, match=r"(?s)for sm_80: expected CUDA 12.5 .*undefined"):
        compile_cubin("__global__ void k() { undefined(); }", "sm_80")


def test_missing_nvcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(TargetError, match=r"needs nvcc on this machine .* install the CUDA"):
        compile_cubin("", "sm_80")


def two_launches() -> CudaSource:
    kernel = ROWS[0]
    problem, _, _ = make_problem(kernel, CONV, EPILOGUE, 0, whole=True)
    tile = replace(next(tile for row, tile in VARIANTS if row is kernel), splits=2)
    return source_of(kernel, kernel.lower(problem, tile))


def test_launches_follow_the_function() -> None:
    first, second = two_launches().launches
    assert first.grid == (2, 2, 1) and second.grid == (2, 1, 1)
    assert first.block == second.block == (256, 1, 1)
    assert set(first.arguments) == {"x", "weights", "scratch"}
    assert set(second.arguments) == {"bias", "residual", "scratch", "out"}
    assert first.shared_bytes > second.shared_bytes > 0


def test_tvm_keeps_its_own_way_to_compile() -> None:
    before = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
    two_launches()
    after = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
    assert before.same_as(after)


def test_the_source_is_found_where_tvm_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an NVIDIA driver, TVM hands the source to its callback and keeps the binary."""
    expected = two_launches()

    class Built:
        def inspect_source(self, kind: str) -> str:
            return ""

    def with_driver(module: object, target: object) -> Built:
        tvm_ffi.get_global_func("tvm_callback_cuda_compile")(expected.text)
        return Built()

    monkeypatch.setattr(cuda_build, "codegen_build", with_driver)
    assert two_launches() == expected


def test_sources_do_not_depend_on_the_order_of_builds() -> None:
    assert two_launches() == two_launches()
