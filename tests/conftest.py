"""What several test files share; tests for CPUs and tools that are not here."""

from __future__ import annotations

import os

# Before torch is imported: threads of one worker wait busily, on a core that another works on.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import onnx
import pytest
from torch._export import utils as export_utils

import nmcompile
from nmcompile.cache import VARIABLE
from nmcompile.devices import Address, start_tracker
from nmcompile.devices.tracker import LOOPBACK
from nmcompile.errors import DeviceError
from nmcompile.runtime import cpu, gpu
from tests.support import twins
from tests.support.seed_modules import export_onnx
from tests.support.tiny_models import example, tiny_net

twins.use()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("isa"):
        need_isa(*mark.args, **mark.kwargs)
    if any(item.iter_markers("gpu")):
        need_gpu()
    for mark in item.iter_markers("tool"):
        if shutil.which(mark.args[0]) is None:
            missing_tool(mark.args[0], "put it on PATH")


def need_isa(name: str, native: bool = False) -> None:
    """Skip on a CPU without this extension, unless (not `native`) twins stand in for it."""
    if name not in cpu.host()[1] and (native or name not in twins.here()):
        pytest.skip(f"this CPU has no {name}")


def missing_tool(name: str, way_out: str) -> NoReturn:
    """Skip, or fail where everything has to be there (`.ci/run` says so)."""
    reason = f"{name} is not installed: {way_out}"
    if os.environ.get("NMCOMPILE_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_gpu(kind: str | None = None) -> str:
    """The kind of the GPU at hand; skip where there is none, or none that runs code for `kind`.

    NMCOMPILE_REQUIRE_GPU=1 makes a missing GPU a failure.
    """
    try:
        here = gpu.host()
    except DeviceError as error:
        if os.environ.get("NMCOMPILE_REQUIRE_GPU"):
            pytest.fail(f"no GPU: {error}")
        pytest.skip(f"no GPU: {error}")
    found = f"{here.name} of compute capability {here.major}.{here.minor}"
    if kind is not None and not gpu.KINDS[kind].runs_on(here):
        pytest.skip(f"{kind} is not for this GPU, {found}")
    own = gpu.kind_of(here)
    if own is None:
        pytest.skip(f"no kernels are for this GPU, {found}")
    return own


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of code for this run alone, which its workers share."""
    folder = tmp_path_factory.getbasetemp()
    root = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ[VARIABLE] = str(root / "cache")


@pytest.fixture(scope="session", autouse=True)
def _operators_of_torch() -> None:
    """Torch looks for new operators of C++ three times in every export, which is a fifth of it.

    Here hundreds of tests export, and none adds any.
    """
    export_utils._materialize_cpp_cia_ops = functools.cache(export_utils._materialize_cpp_cia_ops)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that no test may change."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def sparse_onnx(shared: Path) -> Path:
    """`tiny_net("2:4")` as ONNX with batch norms; input x, output y."""
    path = shared / "sparse.onnx"
    onnx.save(export_onnx(tiny_net("2:4"), example()), path)
    return path


@pytest.fixture(scope="session")
def dense_onnx(shared: Path) -> Path:
    """`tiny_net()` as ONNX; no layer has a pattern."""
    path = shared / "dense.onnx"
    onnx.save(export_onnx(tiny_net(), example()), path)
    return path


@pytest.fixture(scope="session")
def sparse_result(shared: Path, sparse_onnx: Path) -> nmcompile.CompileResult:
    """`sparse_onnx`, compiled."""
    return nmcompile.compile(sparse_onnx, output=shared / "sparse.nmc")


@pytest.fixture(scope="session")
def sparse_artifact(sparse_result: nmcompile.CompileResult) -> Path:
    """The file of `sparse_result`."""
    return sparse_result.path


@pytest.fixture(scope="session")
def tracker() -> Iterator[Address]:
    """A tracker of devices; tests share it under keys of their own."""
    running = start_tracker(port=0)
    yield Address(LOOPBACK, running.port)
    running.terminate()
