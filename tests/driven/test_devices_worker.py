"""Artifacts that are measured on a device give what they give here; the commands around it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import nmcompile
from nmcompile import runtime
from nmcompile.devices import Address, DeviceServer, Job, Outcome, run_jobs
from tests.support.tiny_models import example

pytestmark = pytest.mark.isa("avx512f")


def request(**changes: Any) -> dict[str, Any]:
    asked = {
        "task": "artifact",
        "artifact": "m.nmc",
        "inputs": "x.npz",
        "outputs": "y.npz",
        "threads": 1,
    }
    return asked | {"rounds": 5, "warmup": 1, "roofs": None} | changes


def test_artifact_runs_on_a_device_as_here(
    tracker: Address, dense_onnx: Path, tmp_path: Path
) -> None:
    artifact, inputs = tmp_path / "m.nmc", tmp_path / "x.npz"
    nmcompile.compile(dense_onnx, output=artifact)
    np.savez(inputs, x=example().numpy())
    broken = tmp_path / "broken.nmc"
    broken.write_bytes(artifact.read_bytes()[:-1])

    def job(name: str, file: Path, **changes: Any) -> Job:
        files = {"m.nmc": file, "x.npz": inputs}
        return Job(name, request(**changes), files, {"y.npz": tmp_path / f"{name}.npz"})

    with DeviceServer("worker", port=0, tracker=tracker):
        jobs = [job("good", artifact), job("broken", broken), job("none", artifact, threads=0)]
        found = {o.job.name: o for o in run_jobs(tracker, "worker", jobs)}
    check_good(found["good"], artifact, tmp_path / "good.npz")
    for name, said in (("broken", "m.nmc"), ("none", "threads")):
        assert found[name].response is None and found[name].failures == ()
        assert said in (found[name].error or "")


def check_good(outcome: Outcome, artifact: Path, outputs: Path) -> None:
    assert outcome.response is not None, outcome.error
    assert len(outcome.response["samples_ms"]) == 5
    assert outcome.response["threads"] == 1
    with runtime.load(artifact, threads=1) as session:
        expected = session.run(example())["y"]
        symbols = [time.symbol for time in session.profile(example())]
    assert [layer["symbol"] for layer in outcome.response["layers"]] == symbols
    with np.load(outputs) as found:
        np.testing.assert_array_equal(found["y"], expected)


def start(*words: str) -> tuple[subprocess.Popen[str], str]:
    """A command that goes on, and the first line that it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nmcompile", "device", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


def test_commands_start_and_stop_a_fleet() -> None:
    tracker, said = start("tracker", "--port", "0")
    address = said.partition(" on ")[2].partition(";")[0]
    device, said = start("serve", "--key", "zen", "--port", "0", "--tracker", address)
    assert said.startswith("serving as zen on 127.0.0.1:")
    listed = subprocess.run(
        [sys.executable, "-m", "nmcompile", "devices", "--tracker", address, "--json"],
        capture_output=True,
        check=True,
    )
    (found,) = json.loads(listed.stdout)["devices"]
    assert found["key"] == "zen" and found["free"] == 1 and len(found["servers"]) == 1
    started = [psutil.Process(process.pid) for process in (device, tracker)]
    children = [child for process in started for child in process.children(recursive=True)]
    assert len(children) >= 2
    for process in (device, tracker):
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
