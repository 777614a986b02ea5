"""What is known of the machine."""

from pathlib import Path

import pytest

from nmcompile.machine import describe as machine
from nmcompile.machine.describe import Gpu, describe_machine, machine_document, package_versions

SMI = '#!/bin/sh\necho "NVIDIA H100, 80GB HBM3, 9.0, 81559, 550.54.15"\n'


def test_this_machine_has_cores_memory_and_caches() -> None:
    found = describe_machine()
    assert found.cores >= 1 and found.memory_bytes > 1 << 28 and found.cpu
    assert set(machine_document()) >= {"cpu", "cores", "caches", "versions"}
    assert package_versions(["numpy", "no-such-package"]).keys() == {"numpy"}


def test_graphics_processors_are_asked_of_their_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert describe_machine().gpus == [
        Gpu(
            name="NVIDIA H100, 80GB HBM3",
            architecture="sm_90",
            memory_bytes=81559 << 20,
            driver="550.54.15",
        )
    ]


def test_a_machine_that_says_nothing_is_described_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CPUINFO", "MEMINFO", "CPU0"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_machine()
    assert (found.memory_bytes, found.governor, found.gpus, found.caches) == (0, None, [], {})
