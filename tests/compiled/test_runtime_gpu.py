"""What loading a GPU artifact asks of the machine, with drivers that are made up."""

from pathlib import Path

import numpy as np
import pytest

from nmcompile.errors import DeviceError
from nmcompile.runtime import gpu, load, native, session, write_artifact
from nmcompile.runtime.native import native_runtime
from nmcompile.runtime.tensors import from_gpu, from_numpy, to_gpu
from tests.support.fake_cuda import Driver, use_driver
from tests.support.manifests import manifest


def artifact(folder: Path, kind: str = "sm_80") -> Path:
    """Its library is none: a test that reaches it fails otherwise."""
    described = manifest(kind=kind, cpu_features=())
    write_artifact(folder / "m.nmc", described, b"no library", {"w": np.ones((8, 16), np.float32)})
    return folder / "m.nmc"


@pytest.mark.parametrize(
    ("kind", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 6), False),  # it would load, and find too little shared memory
        ("sm_80", (8, 9), False),
        ("sm_86", (8, 6), True),
        ("sm_86", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_89", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_80", (7, 5), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
    ],
)
def test_compute_capability_decides(
    kind: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, Driver(capability))
    if runs:
        gpu.require(kind, 1 << 30, "m.nmc")
        return
    found = f"found NVIDIA Imaginary of {capability[0]}.{capability[1]}"
    with pytest.raises(DeviceError, match=rf"m\.nmc needs an NVIDIA GPU of .*, {found}"):
        gpu.require(kind, 0, "m.nmc")


def test_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    with pytest.raises(DeviceError, match=r"8\.0 .*found no NVIDIA driver.*--target avx512"):
        load(artifact(tmp_path))


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver(count=0), "reports no GPU.*CUDA_VISIBLE_DEVICES"),
        (Driver(failing="cuInit"), "answers cuInit with error 999"),
        (Driver((9, 0)), r"of compute capability 8\.0 .*found NVIDIA Imaginary of 9\.0"),
        (Driver(cuda=12080), r"needs an NVIDIA driver for CUDA 13 .*found one for CUDA 12\.8;"),
        (Driver(memory=100), r"needs \d+ bytes of GPU memory, NVIDIA Imaginary has 100"),
    ],
)
def test_unfit_gpu_is_refused_before_the_library_is_touched(
    driver: Driver, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact(tmp_path)
    use_driver(monkeypatch, driver)
    with pytest.raises(DeviceError, match=reason):
        load(path)


def test_missing_cuda_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact(tmp_path)
    monkeypatch.setattr(gpu, "require", lambda *arguments: None)
    monkeypatch.setattr(native, "cudart_paths", lambda: [])
    monkeypatch.setattr(native, "library_folders", lambda: [tmp_path])
    (tmp_path / "libtvm_runtime_cuda.so").write_bytes(b"no library")
    with pytest.raises(DeviceError, match=r"CUDA runtime cannot be loaded .*libcudart\.so\.13"):
        load(path)


def test_values_survive_the_way_to_a_device_and_back() -> None:
    """The device is the CPU here: what a copy is made of is the same."""
    runtime = native_runtime()
    for dtype in (np.float16, np.float32, np.int32):
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        placed = to_gpu(runtime, from_numpy(runtime, array), "cpu")
        array_again = from_gpu(runtime, placed)
        assert array_again.dtype == dtype
        np.testing.assert_array_equal(array_again, array)


def test_every_kind_is_a_target_and_the_other_way_round() -> None:
    from nmcompile.targets import TARGETS

    assert [target.name for target in TARGETS] == list(session.KINDS)
