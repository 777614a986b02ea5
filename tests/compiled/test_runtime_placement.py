"""Tensors in a GPU's memory, in and out of a session: a driver that is made up, CPU memory."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tvm_ffi

from nmcompile.errors import ArtifactError, DeviceError, InputError
from nmcompile.runtime import Call, Session, load, write_artifact
from nmcompile.runtime.compiled import Compiled
from nmcompile.runtime.cuda import Cuda
from nmcompile.runtime.profile import GpuClock, Recorder
from tests.support.fake_cuda import Driver, pretend_gpu, use_driver
from tests.support.manifests import SHAPE, X, Y, aligned, manifest
from tests.support.runtime_models import (
    affine_library,
    identity_library,
    stamping_library,
    two_input_library,
)

STREAM = 77  # torch's current one
CALLS = (Call("multiply", "scale"), Call("add", "shift1"), Call("add", "shift2"))
RANDOM = np.random.default_rng(0)
SCALE, SHIFT = (RANDOM.standard_normal(SHAPE, np.float32) for _ in range(2))


class CudaTensor(torch.Tensor):
    """One of torch's that says it is on a GPU; what it is asked to hand out is kept."""

    gpu_index = 0
    asked: tuple[Any, ...] = ()

    def __dlpack_device__(self) -> Any:
        return (2, self.gpu_index)

    def __dlpack__(self, *, stream: Any = -1, max_version: Any = None, **rest: Any) -> Any:
        self.asked = (stream, max_version)
        return self.as_subclass(torch.Tensor).__dlpack__(max_version=max_version)


class OldTensor:
    """Of a library that is not torch, and knows no versions of DLPack."""

    def __init__(self, array: Any) -> None:
        self.array, self.stream = array, None

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: Any) -> Any:
        self.stream = stream
        return torch.from_numpy(self.array).__dlpack__()


class SpacedTensor(OldTensor):
    """As the array API has it."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda tensor: ("of its kind", np.from_dlpack(tensor)))


def on_gpu(array: Any = None) -> CudaTensor:
    if array is None:
        array = aligned(SHAPE)
        array[...] = RANDOM.standard_normal(SHAPE, np.float32)
    return torch.from_numpy(array).as_subclass(CudaTensor)


def plain(tensor: torch.Tensor) -> Any:
    return np.asarray(tensor.as_subclass(torch.Tensor))


def expected(x: Any) -> Any:
    return np.asarray(x, np.float64) * SCALE + 2 * SHIFT.astype(np.float64)


def assert_affine(found: Any, x: Any) -> None:
    np.testing.assert_allclose(found, expected(x), rtol=1e-5, atol=1e-5)


class Machine:
    """A GPU that is made up: its driver, the streams that sessions have set, and such sessions."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.driver, self.torch_stream = folder, Driver(), STREAM
        self.streams = pretend_gpu(monkeypatch, self.driver)
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda i: SimpleNamespace(cuda_stream=self.torch_stream)
        )

    def load(self, library: bytes, weights: Any = None, **described: Any) -> Session:
        path = self.folder / "m.nmc"
        about = manifest(kind="sm_80", cpu_features=(), **described)
        write_artifact(path, about, library, weights or {})
        loaded = load(path)
        self.streams.clear()
        self.driver.log.clear()
        return loaded

    def affine(self) -> Session:
        weights = {"scale": SCALE, "shift": SHIFT}
        return self.load(affine_library(self.folder), weights, calls=CALLS)

    def pair(self) -> Session:
        library = two_input_library(self.folder)
        return self.load(library, inputs=(X, Y), outputs=(Y, X))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_numpy_comes_back_as_numpy_from_the_default_stream(machine: Machine) -> None:
    x = RANDOM.standard_normal(SHAPE, np.float32)
    found = machine.affine().run(x)["y"]
    assert type(found) is np.ndarray
    assert_affine(found, x)
    assert machine.streams == [0]


def test_torch_comes_back_as_torch_on_the_stream_of_the_caller(machine: Machine) -> None:
    x = on_gpu()
    found = machine.affine().run(x)["y"]
    assert type(found) is torch.Tensor
    assert_affine(found, plain(x))
    assert machine.streams == [STREAM] and x.asked[0] == -1  # in order: nothing to wait for
    assert ("synchronize", STREAM) not in machine.driver.log


def test_a_torch_tensor_is_read_where_it_lies(machine: Machine) -> None:
    x = on_gpu()
    machine.load(stamping_library(machine.folder)).run({"x": x})
    assert plain(x)[0, 0] == 42


def test_a_tensor_of_another_library_waits_for_its_own_work(machine: Machine) -> None:
    """Beside one of torch's, whose stream it is then."""
    array = aligned(SHAPE)
    array[...] = 1
    other = OldTensor(array)
    machine.pair().run({"x": on_gpu(), "y": other})
    assert machine.streams == [STREAM] and other.stream == STREAM


def test_the_kernels_are_launched_on_the_stream(machine: Machine) -> None:
    """As seen by the library: what it asks TVM for while it runs."""
    loaded, seen = machine.affine(), []
    (entry,) = entries(loaded)

    def watched(*arguments: Any) -> Any:
        seen.append(stream_of_tvm())
        return entry(*arguments)

    entries(loaded)[:] = [watched]
    loaded.run(on_gpu())
    assert seen == [STREAM] and stream_of_tvm() == 0


def entries(session: Session) -> list[Any]:
    """The functions that its next runs call."""
    assert session._loaded is not None
    (loaded,) = session._loaded
    assert isinstance(loaded, Compiled)
    return loaded.idle


def stream_of_tvm() -> Any:
    return tvm_ffi.get_raw_stream(tvm_ffi.device("cpu", 0))


def test_tensors_of_other_libraries_wait_for_the_result(machine: Machine) -> None:
    array = aligned(SHAPE)
    array[...] = 2
    x = OldTensor(array)
    found = machine.affine().run(x)["y"]
    assert_affine(np.from_dlpack(found), array)
    assert x.stream == 1  # what DLPack calls the default one
    assert machine.streams == [0]
    assert machine.driver.log[-1] == ("synchronize", 0)


def test_the_array_api_says_of_which_kind_a_result_is(machine: Machine) -> None:
    array = aligned(SHAPE)
    array[...] = 3
    kind, found = machine.affine().run(SpacedTensor(array))["y"]
    assert kind == "of its kind"
    assert_affine(found, array)


def test_arrays_beside_tensors_are_copied_and_waited_for(machine: Machine) -> None:
    x, y = on_gpu(), RANDOM.standard_normal(SHAPE, np.float32)
    result = machine.pair().run({"y": y, "x": x})
    assert isinstance(result["y"], torch.Tensor)
    np.testing.assert_array_equal(result["y"], plain(x) + y)
    assert machine.driver.log[-1] == ("synchronize", STREAM)


def test_an_output_that_is_an_input_is_not_the_callers_memory(machine: Machine) -> None:
    x = on_gpu()
    result = machine.pair().run({"x": x, "y": x})
    assert not np.shares_memory(np.asarray(result["x"]), plain(x))
    np.testing.assert_array_equal(result["x"], plain(x))
    assert machine.driver.log == [("copy", STREAM)]


def test_another_stream_waits_for_the_work_of_the_last(machine: Machine) -> None:
    loaded = machine.affine()
    loaded.run(on_gpu())
    machine.torch_stream = 88
    loaded.run(on_gpu())
    # The weights were placed on the default stream.
    first, second = ([e for e in machine.driver.log if e[-1] == s] for s in (0, STREAM))
    assert [entry[0] for entry in second] == ["record"]
    event = second[0][1]
    assert ("wait", 88, event) in machine.driver.log
    assert {entry[0] for entry in first} == {"record"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: on_gpu(np.ones((4, 4), np.float32)), r"expected shape \(8, 16\), found \(4, 4\)"),
        (lambda: on_gpu(np.ones(SHAPE, np.float64)), "expected dtype float32, found float64"),
        (lambda: on_gpu(np.ones((16, 8), np.float32)).T, r"found strides \(1, 8\); .*contiguous"),
        (lambda: on_gpu(aligned(SHAPE, shift=4)), "found 4 bytes behind one; pass x.clone"),
        (lambda: on_gpu().requires_grad_(), "requires gradients.*pass x.detach"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(
    make: Callable[[], Any], reason: str, machine: Machine
) -> None:
    loaded = machine.affine()
    with pytest.raises(InputError, match=f"input 'x': .*{reason}"):
        loaded.run(make())
    assert machine.driver.contexts == 0, "the caller's context is back"


def test_a_tensor_on_another_gpu_is_refused(machine: Machine) -> None:
    x = on_gpu()
    x.gpu_index = 1
    with pytest.raises(InputError, match=r"expected memory of GPU 0, .* found GPU 1; copy it"):
        machine.affine().run(x)


def test_a_tensor_that_is_not_handed_out_is_refused(machine: Machine) -> None:
    class Unwilling(OldTensor):
        def __dlpack__(self, *, stream: Any) -> Any:
            raise BufferError("it is lazy")

    with pytest.raises(InputError, match=r"Unwilling cannot be shared .*\(it is lazy\)"):
        machine.affine().run(Unwilling(aligned(SHAPE)))


def test_a_model_for_cpus_refuses_tensors_of_a_gpu(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), identity_library(tmp_path, SHAPE, "float32"), {})
    with pytest.raises(InputError, match=r"expected CPU memory, found DLPack device \(2, 0\)"):
        load(tmp_path / "m.nmc").run(on_gpu())


def test_a_gpu_that_fails_is_one_clear_error(machine: Machine) -> None:
    loaded = machine.affine()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("CUDA: out of memory")

    for x in (on_gpu(), np.ones(SHAPE, np.float32)):
        entries(loaded)[:] = [fail]
        with pytest.raises(
            DeviceError, match=r"cannot run the model: CUDA: out of memory; .*batch"
        ):
            loaded.run(x)
    assert machine.driver.contexts == 0


def test_a_gpu_without_room_for_the_weights_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("nmcompile.runtime.placement.to_gpu", fail)
    with pytest.raises(DeviceError, match=r"cannot take 512 bytes of weights: out of memory"):
        machine.affine()


@pytest.mark.parametrize("make", [on_gpu, lambda: np.ones(SHAPE, np.float32)])
def test_profile_measures_by_events(make: Callable[[], Any], machine: Machine) -> None:
    """The clock of the driver that is made up goes on by one with every event."""
    loaded = machine.affine()
    times = loaded.profile(make(), repeats=3)
    assert [(time.layer, time.symbol, time.ms) for time in times] == [
        ("scale", "multiply", 1.0),
        ("shift1", "add", 1.0),
        ("shift2", "add", 1.0),
    ]
    assert not machine.driver.times, "all events are destroyed"


def test_calls_that_are_captured_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new VM runs the part that becomes a CUDA graph twice: for real, then to capture it."""
    driver, here = Driver(), [STREAM]
    use_driver(monkeypatch, driver)
    cuda = Cuda()
    recorder = Recorder(GpuClock(cuda, STREAM, lambda: here[0], lambda: None))

    def call(symbol: str, inside: Callable[[], None] = lambda: None) -> None:
        assert recorder(None, symbol, True) == 0
        inside()
        assert recorder(None, symbol, False, None) == 0

    def twice() -> None:
        call("conv")
        call("vm.builtin.reshape")
        here[0] = 5  # of the capture
        call("conv")
        here[0] = STREAM

    with cuda.current():
        call("cast")
        call("vm.builtin.cuda_graph.run_or_capture", twice)
        call("softmax")
        assert recorder.times() == [("cast", 1.0), ("conv", 1.0), ("softmax", 1.0)]


def test_the_gpu_is_kept_busy_for_as_long_as_launches_take(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, runs = Driver(), []
    use_driver(monkeypatch, driver)
    cuda = Cuda()
    clock = GpuClock(cuda, STREAM, lambda: STREAM, lambda: runs.append(1))
    with cuda.current():
        clock.prepare(0.0)
        assert len(runs) == 3  # the capture, one to time, one ahead; each takes 1 ms
        clock.prepare(4.5)
        assert len(runs) == 3 + 1 + 5


def test_a_library_without_reports_cannot_be_profiled(machine: Machine) -> None:
    library = affine_library(machine.folder, exec_mode="compiled")
    loaded = machine.load(library, {"scale": SCALE, "shift": SHIFT})
    with pytest.raises(ArtifactError, match="cannot be profiled"):
        loaded.profile(on_gpu())


def test_driver_that_fails_in_a_run_is_named(machine: Machine) -> None:
    loaded = machine.affine()
    loaded.run(on_gpu())
    machine.driver.failing, machine.torch_stream = "cuStreamWaitEvent", 88
    with pytest.raises(DeviceError, match="answers cuStreamWaitEvent with error 999"):
        loaded.run(on_gpu())
