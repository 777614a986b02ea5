"""Loading artifacts and running them."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import nmcompile
from nmcompile.errors import ArtifactError, DeviceError, InputError
from nmcompile.runtime import (
    Call,
    Manifest,
    Session,
    TensorSpec,
    cpu,
    load,
    placement,
    write_artifact,
)
from nmcompile.runtime.compiled import Compiled
from tests.support.manifests import FEATURES, SHAPE, X, Y, aligned, manifest
from tests.support.runtime_models import (
    affine_library,
    identity_library,
    preparing_library,
    stamping_library,
    two_input_library,
)

pytestmark = pytest.mark.alone  # it is about threads and cores

CALLS = (Call("multiply", "scale"), Call("add", "shift1"), Call("add", "shift2"))
RANDOM = np.random.default_rng(0)
SCALE, SHIFT = (RANDOM.standard_normal(SHAPE, np.float32) for _ in range(2))
WEIGHTS = {"scale": SCALE, "shift": SHIFT}


def expected(x: Any) -> Any:
    return np.asarray(x, np.float64) * SCALE + 2 * SHIFT.astype(np.float64)


def random_input() -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(SHAPE, np.float32)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return affine_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def path(library: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("affine") / "affine.nmc"
    write_artifact(path, manifest(calls=CALLS), library, WEIGHTS)
    return path


@pytest.fixture(scope="module")
def session(path: Path) -> Session:
    return load(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("pair")
    twin = manifest(inputs=(X, Y), outputs=(Y, X))
    write_artifact(folder / "pair.nmc", twin, two_input_library(folder), {})
    return load(folder / "pair.nmc")


@pytest.fixture(scope="module")
def stamper(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Writes 42 into the memory it is given, so that a caller sees whether that is his own."""
    folder = tmp_path_factory.mktemp("stamp")
    write_artifact(folder / "stamp.nmc", manifest(), stamping_library(folder), {})
    return load(folder / "stamp.nmc")


def test_a_single_input_is_given_as_the_array_itself(session: Session) -> None:
    x = random_input()
    np.testing.assert_allclose(session.run(x)["y"], expected(x), rtol=1e-5, atol=1e-5)


def test_inputs_are_given_by_name(pair: Session) -> None:
    x, y = random_input(), random_input()
    result = pair.run({"y": y, "x": x})
    np.testing.assert_array_equal(result["y"], x + y)
    np.testing.assert_array_equal(result["x"], x)


def test_a_session_tells_what_it_takes_and_gives(session: Session) -> None:
    assert session.inputs == (X,)
    assert session.outputs == (Y,)
    assert session.manifest.model.name == "tiny"


def test_outputs_survive_the_next_run(session: Session) -> None:
    x = random_input()
    first = session.run(x)["y"]
    kept = first.copy()
    for _ in range(5):
        session.run(x + 1)
    np.testing.assert_array_equal(first, kept)


def test_an_output_that_is_an_input_is_not_the_callers_memory(pair: Session) -> None:
    x = aligned(SHAPE)
    x[...] = 1
    result = pair.run({"x": x, "y": x})
    assert not np.shares_memory(result["x"], x)


class Several(nn.Module):
    """The same values twice, what it was given, and what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.held = nn.Parameter(torch.arange(5000.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.conv(x))
        return y, y.flatten(1), x, self.held


def test_large_outputs_are_not_copied_and_the_callers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be written to, and outlive runs and the session; weights and inputs are not they."""
    monkeypatch.setattr(placement, "LARGE", 1)
    model, x = Several().eval(), torch.randn(1, 3, 16, 16)
    nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=(x,))
    session = load(tmp_path / "m.nmc")
    given = aligned((1, 3, 16, 16))
    given[...] = x.numpy()
    runs = [session.run({session.inputs[0].name: given}) for _ in range(3)]
    arrays = [array for outputs in runs for array in outputs.values()]
    for place, array in enumerate(arrays):
        assert array.flags.writeable and not np.shares_memory(array, given)
        assert not any(np.shares_memory(array, other) for other in arrays[:place])
        array[...] = np.nan
    session.run({session.inputs[0].name: given + 1})
    last = list(session.run({session.inputs[0].name: given}).values())
    session.close()
    assert not last[0].flags.owndata
    for found, expected in zip(last, model(x), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert all(np.isnan(array).all() for array in arrays)


def test_so_many_large_outputs_are_lent_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps results gets copies, and gives back to the system what they took."""
    x = random_input()
    monkeypatch.setattr(placement, "LARGE", 1)
    monkeypatch.setattr(placement, "MOST_LENT", 2 * x.nbytes)
    with load(path) as session:
        kept = [session.run(x)["y"] for _ in range(4)]
        assert [array.flags.owndata for array in kept] == [False, False, True, True]
        view = kept[0][:1]
        del kept[0]
        assert session.run(x)["y"].flags.owndata  # the view holds it
        del view
        assert not session.run(x)["y"].flags.owndata
        for array in kept:
            np.testing.assert_allclose(array, expected(x), rtol=1e-5, atol=1e-5)


def test_aligned_numpy_is_passed_by_reference(stamper: Session) -> None:
    x = aligned(SHAPE)
    x[...] = 1
    stamper.run(x)
    assert x[0, 0] == 42


@pytest.mark.parametrize("grad", [False, True])
def test_torch_tensors_are_passed_by_reference(stamper: Session, grad: bool) -> None:
    x = torch.ones(SHAPE, requires_grad=grad)
    stamper.run(x)
    assert x[0, 0].item() == 42


class OnlyDlpack:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def test_any_dlpack_object_is_passed_by_reference(stamper: Session) -> None:
    x = torch.ones(SHAPE)
    stamper.run(OnlyDlpack(x))
    assert x[0, 0].item() == 42


@pytest.mark.parametrize("kind", ["misaligned", "transposed", "strided", "read-only", "torch.T"])
def test_other_memory_is_copied(session: Session, stamper: Session, kind: str) -> None:
    values = random_input()
    x: Any = {
        "misaligned": aligned(SHAPE, shift=4),
        "transposed": np.empty(SHAPE[::-1], np.float32).T,
        "strided": np.empty((SHAPE[0], SHAPE[1] * 2), np.float32)[:, ::2],
        "read-only": aligned(SHAPE),
        "torch.T": torch.empty(SHAPE[::-1]).T,
    }[kind]
    x[...] = torch.from_numpy(values) if kind == "torch.T" else values
    if kind == "read-only":
        x.flags.writeable = False
    np.testing.assert_allclose(session.run(x)["y"], expected(values), rtol=1e-5, atol=1e-5)
    stamper.run(x)
    np.testing.assert_array_equal(np.asarray(x), values)


@pytest.mark.parametrize("dtype", "float16 bfloat16 int8 uint8 int16 int32 int64 bool".split())
@pytest.mark.parametrize("kind", ["numpy", "torch", "torch offset"])
def test_every_dtype_passes_through(tmp_path: Path, dtype: str, kind: str) -> None:
    spec = TensorSpec("x", (3, 5), dtype)
    artifact = tmp_path / "m.nmc"
    library = identity_library(tmp_path, spec.shape, dtype)
    write_artifact(artifact, manifest((spec,), (spec,)), library, {})
    values = np.arange(15).reshape(3, 5) % 7
    x: Any = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    wanted = x
    if kind != "numpy":
        x = torch.from_numpy(values).to(getattr(torch, dtype))
        if kind == "torch offset":
            x = torch.cat([x.flatten()[:1], x.flatten()])[1:].reshape(3, 5)
    found = load(artifact, threads=1).run(x)["x"]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"X": 0}, "expected the inputs 'x', found 'X'"),
        ({}, "expected the inputs 'x', found none"),
        ({"x": 0, "z": 0}, "expected the inputs 'x', found 'x', 'z'"),
        (np.zeros((4, 4), np.float32), r"'x': expected shape \(8, 16\), found \(4, 4\)"),
        (np.zeros(SHAPE), "'x': expected dtype float32, found float64"),
        (np.zeros(SHAPE, ">f4"), "'x': expected dtype float32, found >f4"),
        (torch.zeros(SHAPE).half(), "'x': expected dtype float32, found float16"),
        (torch.zeros(16, 8).T[:4], r"'x': expected shape \(8, 16\), found \(4, 16\)"),
        (torch.zeros(SHAPE, device="meta"), "'x'"),
        (torch.zeros(SHAPE).to_sparse(), "'x': this Tensor cannot be shared through DLPack"),
        ([[0.0] * 16] * 8, "'x': expected a numpy array or a tensor with __dlpack__, found list"),
        (None, "found NoneType"),
    ],
)
def test_a_wrong_input_is_named(session: Session, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.run(inputs)


def test_a_tensor_on_another_device_is_refused(session: Session) -> None:
    class Elsewhere(OnlyDlpack):
        def __dlpack_device__(self) -> Any:
            return (2, 0)

    with pytest.raises(InputError, match=r"expected CPU memory, found DLPack device \(2, 0\)"):
        session.run(Elsewhere(torch.zeros(SHAPE)))


def test_several_inputs_need_a_mapping(pair: Session) -> None:
    with pytest.raises(InputError, match="expected a mapping with the inputs 'x', 'y'"):
        pair.run(random_input())


def test_profile_names_every_call_in_order(session: Session) -> None:
    times = session.profile(random_input(), repeats=3)
    assert [(time.layer, time.symbol) for time in times] == [
        ("scale", "multiply"),
        ("shift1", "add"),
        ("shift2", "add"),
    ]
    assert all(time.ms > 0 for time in times)


def test_profile_falls_back_on_the_symbols(library: bytes, tmp_path: Path) -> None:
    described = manifest(calls=(Call("multiply", "scale"), Call("other", "gone")))
    write_artifact(tmp_path / "m.nmc", described, library, WEIGHTS)
    times = load(tmp_path / "m.nmc").profile(random_input(), repeats=1)
    assert [time.layer for time in times] == ["scale", "add", "add"]


def test_a_library_that_cannot_be_profiled_says_so(tmp_path: Path) -> None:
    library = affine_library(tmp_path, exec_mode="compiled")
    write_artifact(tmp_path / "m.nmc", manifest(calls=CALLS), library, WEIGHTS)
    session = load(tmp_path / "m.nmc")
    x = random_input()
    np.testing.assert_allclose(session.run(x)["y"], expected(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArtifactError, match="cannot be profiled"):
        session.profile(x)


def test_bench_returns_one_time_per_repeat(session: Session) -> None:
    seconds = session.bench(random_input(), repeats=4, warmup=1)
    assert len(seconds) == 4
    assert min(seconds) > 0


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_a_wrong_thread_count_is_refused(path: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads: expected an integer of at least 1"):
        load(path, threads=threads)


def test_a_missing_cpu_feature_is_refused_before_the_library_is_touched(tmp_path: Path) -> None:
    described = manifest(cpu_features=(*FEATURES, "avx10.9-imaginary"))
    write_artifact(tmp_path / "m.nmc", described, b"no library at all", {})
    with pytest.raises(DeviceError, match=r"needs the CPU features avx10\.9-imaginary, which"):
        load(tmp_path / "m.nmc")


def test_the_cpu_without_the_feature_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Old CPU 3000\nflags\t\t: fpu sse2\n\n")
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    with pytest.raises(DeviceError, match=f"{FEATURES[-1]}, which this machine's Old CPU 3000"):
        load(path)


def test_another_kind_of_target_is_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(kind="abacus"), b"", {})
    with pytest.raises(DeviceError, match="compiled for the target 'abacus'"):
        load(tmp_path / "m.nmc")


def test_a_pinned_artifact_loads(library: bytes, tmp_path: Path) -> None:
    digest = write_artifact(tmp_path / "m.nmc", manifest(), library, WEIGHTS)
    assert load(tmp_path / "m.nmc", digest=digest.upper()).digest == digest


def test_another_artifact_than_the_pinned_one_is_refused(path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not the pinned artifact: expected digest 0000"):
        load(path, digest="0" * 64)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        load(path, digest="sha1")


def test_a_section_that_is_no_library_is_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), b"no library at all", {})
    with pytest.raises(ArtifactError, match="cannot load the library"):
        load(tmp_path / "m.nmc")


def test_a_missing_entry_function_is_refused(library: bytes, tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(entry="start"), library, WEIGHTS)
    with pytest.raises(ArtifactError, match="has no function 'start'"):
        load(tmp_path / "m.nmc")


def test_a_function_with_other_arguments_is_refused(library: bytes, tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), library, {"scale": SCALE})
    with pytest.raises(ArtifactError, match=r"to take 2 tensors \(1 inputs and 1 weights\)"):
        load(tmp_path / "m.nmc")


def test_weights_are_prepared_once_per_load(tmp_path: Path) -> None:
    write_artifact(
        tmp_path / "m.nmc", manifest(prepare="prepare"), preparing_library(tmp_path), WEIGHTS
    )
    with load(tmp_path / "m.nmc") as session:
        for _ in range(2):
            x = random_input()
            want = x.astype(np.float64) * SCALE * SHIFT + 2 * SHIFT
            np.testing.assert_allclose(session.run(x)["y"], want, rtol=1e-5, atol=1e-5)


def test_a_missing_or_wrong_prepare_function_is_refused(library: bytes, tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(prepare="prepare"), library, WEIGHTS)
    with pytest.raises(ArtifactError, match="has no function 'prepare'"):
        load(tmp_path / "m.nmc")
    short = preparing_library(tmp_path, short=True)
    write_artifact(tmp_path / "m.nmc", manifest(prepare="prepare"), short, WEIGHTS)
    with pytest.raises(ArtifactError, match=r"'main' to take 2 tensors \(1 inputs and 1 w"):
        load(tmp_path / "m.nmc")


@pytest.mark.parametrize("exec_mode", ["bytecode", "compiled"])
@pytest.mark.parametrize(
    ("promised", "message"),
    [
        (manifest(outputs=(TensorSpec("y", (1, 2), "float32"),)), "expected outputs of shape"),
        (manifest(outputs=(X, Y)), "expected outputs of shape"),
        (
            manifest(inputs=(TensorSpec("x", (16, 8), "float32"),)),
            r"takes R.Tensor\(\(8, 16\), dtype=\"float32\"\) as argument 1, x, expected shape",
        ),
        (manifest(inputs=(TensorSpec("x", (8, 16, 1), "float32"),)), "as argument 1, x, expected"),
        (manifest(inputs=(TensorSpec("x", SHAPE, "int32"),)), "and dtype int32 as in its manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_the_library_is_refused_at_load(
    promised: Manifest, message: str, exec_mode: str, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "m.nmc", promised, affine_library(tmp_path, exec_mode), WEIGHTS)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "m.nmc")


def test_weights_of_another_shape_than_the_library_takes_are_refused(
    library: bytes, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), library, WEIGHTS | {"shift": SHIFT.T})
    with pytest.raises(ArtifactError, match=r"argument 3, b, expected shape \(16, 8\)"):
        load(tmp_path / "m.nmc")


def test_loading_computes_nothing(tmp_path: Path) -> None:
    """The check against the manifest calls no kernel: this one writes into what it reads."""
    write_artifact(tmp_path / "m.nmc", manifest(), stamping_library(tmp_path), {})
    assert load(tmp_path / "m.nmc").profile(random_input(), repeats=1)[0].symbol == "stamp"


def test_an_error_of_the_library_is_ours(path: Path) -> None:
    session = load(path)
    assert session._loaded is not None

    def fail(*arguments: Any) -> Any:
        raise ValueError("Check failed: a number of TVM's\nand more")

    assert isinstance(session._loaded[0], Compiled)
    session._loaded[0].idle[:] = [fail]
    with pytest.raises(ArtifactError, match=r"its library fails .Check failed: a number of TVM's"):
        session.run(random_input())
    session.run(random_input())


def test_a_pinned_artifact_is_what_was_checked(library: bytes, tmp_path: Path) -> None:
    """Even where somebody writes into the file afterwards."""
    file = tmp_path / "m.nmc"
    digest = write_artifact(file, manifest(), library, WEIGHTS)
    session = load(file, digest=digest)
    file.write_bytes(bytes(file.stat().st_size))
    x = random_input()
    np.testing.assert_allclose(session.run(x)["y"], expected(x), rtol=1e-5, atol=1e-5)


def test_a_session_is_pickled_as_its_path_digest_and_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    x, text = random_input(), pickle.dumps(session := load(path.name, threads=1))
    assert len(text) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(text)
    assert (again.digest, again.threads) == (session.digest, 1)
    np.testing.assert_array_equal(again.run(x)["y"], session.run(x)["y"])


def test_a_pickled_session_is_of_one_file(library: bytes, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.nmc"
    write_artifact(file, manifest(), library, WEIGHTS)
    text = pickle.dumps(load(file))
    write_artifact(file, manifest(), library, WEIGHTS | {"shift": SHIFT * 2})
    with pytest.raises(ArtifactError, match="not the pinned artifact"):
        pickle.loads(text)
    with load(path) as session:
        pass
    with pytest.raises(InputError, match="closed"):
        pickle.dumps(session)


def test_nothing_is_left_in_the_temporary_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(path).run(random_input())
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_may_be_replaced_while_it_is_loaded(library: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.nmc"
    write_artifact(file, manifest(), library, WEIGHTS)
    session = load(file)
    write_artifact(file, manifest(), library, {name: w * 0 for name, w in WEIGHTS.items()})
    x = random_input()
    np.testing.assert_allclose(session.run(x)["y"], expected(x), rtol=1e-5, atol=1e-5)


def test_loading_and_running_warns_about_nothing(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, threads=1).run(random_input())
