"""The engines that we are measured against, and the clock that takes turns among them."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import deepsparse_peer
from benchmarks.deepsparse_peer import deepsparse_engine, deepsparse_version
from benchmarks.peers import Array, Engine, interleave, on_cores
from nmcompile.errors import DeviceError

DOUBLING = """
import pathlib
class Engine:
    def __init__(self, model, batch_size, num_cores):
        assert pathlib.Path(model).read_bytes() == b"model" and num_cores == 1
        print("a banner on standard output")
    def run(self, inputs, val_inp):
        return [2 * inputs[0]]
"""
REFUSING = """
class Engine:
    def __init__(self, model, batch_size, num_cores):
        raise RuntimeError("operator Foo is not known")
"""


def install(folder: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that looks like DeepSparse's, with a `module` of our own in its place."""
    metadata = folder / "lib" / "python3.11" / "site-packages" / "deepsparse-1.8.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: deepsparse\nVersion: 1.8.0\n")
    (metadata.parent / "deepsparse.py").write_text(module)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(deepsparse_peer, "ENVIRONMENT", folder)
    monkeypatch.setenv("PYTHONPATH", str(metadata.parent))


def test_deepsparse_runs_in_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, DOUBLING, monkeypatch)
    assert deepsparse_version() == "1.8.0"
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    with deepsparse_engine(b"model", 1) as engine:
        for image in (x, x + 1):
            output, seconds = engine(image)
            np.testing.assert_array_equal(output, 2 * image)
            assert seconds > 0


def test_deepsparse_that_refuses_a_model_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, REFUSING, monkeypatch)
    with pytest.raises(DeviceError, match="operator Foo is not known"):
        with deepsparse_engine(b"model", 1):
            pass


def test_missing_deepsparse_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepsparse_peer, "ENVIRONMENT", tmp_path / ".venv-deepsparse")
    with pytest.raises(DeviceError, match=r"\.venv-deepsparse: run `make deepsparse`"):
        deepsparse_version()


def test_engines_take_turns_and_keep_their_own_clock() -> None:
    calls: list[str] = []

    def engine(name: str, seconds: float) -> Engine:
        def run(x: Array) -> tuple[Array, float]:
            calls.append(name)
            return x, seconds

        return run

    engines = {"a": engine("a", 1.0), "b": engine("b", 2.0)}
    times = interleave(engines, np.zeros(1, np.float32), 3, warmup=1)
    assert times == {"a": [1e3] * 3, "b": [2e3] * 3}
    assert calls == [*"aabb", *"bbaa"] * 2


def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
