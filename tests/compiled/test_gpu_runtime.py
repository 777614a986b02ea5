"""Sessions on TVM's own CUDA runtime, over libraries of NVIDIA's that are made up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nmcompile
from nmcompile import runtime
from tests.support.gpu_models import MODELS, pruned

HERE = Path(__file__).parents[1] / "support" / "fake_libraries"
NULL = "(nil)"  # the default stream

pytestmark = pytest.mark.tool("nvcc")


def build_libraries(folder: Path) -> None:
    """libcuda and libcudart, of one source."""
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: *; };")
    common = ["g++", "-x", "c", "-w", "-O1", "-shared", "-fPIC", str(HERE / "cuda.c"), "-x", "none"]
    driver = folder / "libcuda.so.1"
    for output, options in (
        (driver, []),
        (
            folder / "libcudart.so.13",
            ["-DRUNTIME", f"-Wl,--version-script={versions}", str(driver)],
        ),
    ):
        words = [*common, f"-Wl,-soname,{output.name}", "-o", str(output), *options]
        subprocess.run(words, check=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, shape = MODELS["residual"]
    path = tmp_path_factory.mktemp("artifact") / "m.nmc"
    example = (torch.randn(shape),)
    nmcompile.compile(pruned(make(), "2:4"), output=path, target="sm_80", example_inputs=example)
    return path


@pytest.fixture(scope="module")
def found(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `use_session.py` printed."""
    folder = tmp_path_factory.mktemp("libraries")
    build_libraries(folder)
    root = str(Path(nmcompile.__file__).parents[1])
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": root}
    words = [sys.executable, str(HERE / "use_session.py"), str(artifact)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kernels(log: list[str], verb: str) -> list[list[str]]:
    return [line.split()[1:] for line in log if line.startswith(verb + " ")]


def test_weights_are_copied_once(artifact: Path, found: Any) -> None:
    weights = len(runtime.read_artifact(artifact).params)
    assert found["load"] == [f"copy {NULL}"] * weights


def test_the_first_run_captures_what_the_second_launches_as_one(found: Any) -> None:
    first, second = found["first"], found["second"]
    captured = [name for name, _ in kernels(first, "capture")]
    assert len(captured) >= 10
    launched = [name for name, _ in kernels(first, "launch")]
    assert launched == [launched[0], *captured, launched[-1]], "once for real, before"
    assert second == [
        f"copy {NULL}",  # the input
        f"launch {launched[0]} {NULL}",
        f"graph {NULL}",
        f"launch {launched[-1]} {NULL}",
        f"copy {NULL}",  # the output
    ]
    assert found["shapes"] == [[2, 10]]


def test_a_tensor_on_the_gpu_is_not_copied_and_stays_there(found: Any) -> None:
    verbs = [line.split()[0] for line in found["on the GPU"]]
    assert verbs == ["launch", "graph", "launch", "synchronize"]
    assert found["devices"] == [[2, 0]]


def test_a_run_is_on_the_stream_of_torch(found: Any) -> None:
    """Its graph, too; behind what was launched on the default stream, and not waited for."""
    assert [line.split()[0] for line in found["torch"]] == ["wait", "launch", "graph", "launch"]
    assert {line.split()[-1] for line in found["torch"]} == {"0x77"}
    assert found["kinds"] == [True]


def test_profile_times_every_call_of_the_model(artifact: Path, found: Any) -> None:
    """Those that are captured, too, by the name of their layer; the clock counts events."""
    calls = runtime.read_artifact(artifact).manifest.calls
    assert found["layers"] == [[call.symbol, call.layer, 1.0] for call in calls]


def test_threads_share_the_graph_of_a_session(found: Any) -> None:
    """None allocates while another captures: the driver would refuse it."""
    assert found["errors"] == []
    log = found["threads"]
    assert sum(line.startswith("graph ") for line in log) == 4 * 5 - 1  # all runs but the first
