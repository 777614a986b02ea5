"""Sessions over models of which onnxruntime runs parts."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import nmcompile
from nmcompile.errors import ArtifactError, InputError
from nmcompile.runtime import Session, TensorSpec, load, read_artifact, write_artifact
from nmcompile.runtime.chain import Chain
from nmcompile.runtime.manifest import Manifest
from tests.support.mixed_models import (
    BACKBONE,
    FLOAT,
    SHAPE,
    backbone,
    by_onnxruntime,
    counting,
    image,
    model,
    node,
    reader,
    weight,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours, onnxruntime's, ours"""
    file = tmp_path_factory.mktemp("reader") / "m.nmc"
    nmcompile.compile(reader(), output=file)
    return file


@pytest.fixture(scope="module")
def expected() -> Any:
    return by_onnxruntime(reader(), {"x": image()})[0]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_python_threads_run_it_at_once(path: Path, threads: int) -> None:
    images = [image(seed) for seed in range(12)]
    wanted = [by_onnxruntime(reader(), {"x": x})[0] for x in images]
    with load(path, threads=threads) as session, ThreadPoolExecutor(4) as pool:
        for found, result in zip(pool.map(session.run, images), wanted, strict=True):
            close(found["text"], result)


def test_results_are_the_callers_own(path: Path) -> None:
    with load(path, threads=1) as session:
        first = session.run(image())["text"]
        kept = first.copy()
        session.run(image(2))
        assert (first == kept).all()


@pytest.fixture
def open_ended(tmp_path: Path) -> Path:
    nmcompile.compile(counting(), output=tmp_path / "m.nmc")
    return tmp_path / "m.nmc"


def test_what_onnxruntime_returns_outlives_the_session(open_ended: Path) -> None:
    session = load(open_ended, threads=1)
    results = [session.run(image(seed))["places"] for seed in range(3)]
    session.close()
    del session
    for seed, found in enumerate(results):
        wanted = by_onnxruntime(counting(), {"x": image(seed)})[1]
        assert found.shape == wanted.shape
        assert (found == wanted).all()


@pytest.mark.parametrize("kind", ["numpy", "shifted", "strided", "torch"])
def test_inputs_of_any_kind_reach_onnxruntime(kind: str, tmp_path: Path) -> None:
    # x is read by the rest itself, and not only by ours.
    nodes = [*backbone(), node("CumSum", ["x", "axis"], ["s"]), node("NonZero", ["s"], ["n"])]
    proto = model(
        nodes,
        {**BACKBONE, "axis": np.array(3)},
        [("a", FLOAT, None), ("s", FLOAT, None), ("n", TensorProto.INT64, None)],
    )
    nmcompile.compile(proto, output=tmp_path / "m.nmc")
    x = image()
    memory = np.empty(x.size + 1, np.float32)
    memory[1:] = x.reshape(-1)
    value: Any = {
        "numpy": x,
        "shifted": memory[1:].reshape(SHAPE),
        "strided": np.asfortranarray(x),
        "torch": torch.from_numpy(x.copy()),
    }[kind]
    with load(tmp_path / "m.nmc", threads=1) as session:
        found = session.run({"x": value})
    for name, wanted in zip(found, by_onnxruntime(proto, {"x": x}), strict=True):
        close(found[name], wanted)


def test_tensors_between_the_parts_are_not_copied(path: Path) -> None:
    with load(path, threads=1) as session:
        assert session._loaded is not None
        (chain,) = session._loaded
        assert isinstance(chain, Chain)
        seen: dict[str, list[int]] = {}
        for name, part in zip(("first", "rest", "last"), chain.parts, strict=True):
            watch(part, seen, name)
        session.run(image())
    assert seen["first out"] == seen["rest in"]
    assert seen["rest out"] == seen["last in"]


def watch(part: Any, seen: dict[str, list[int]], name: str) -> None:
    """Note where the tensors lie that a part is given, and those that it makes."""
    run = part.run

    def address(value: Any) -> int:
        return int(value.data_ptr())

    def watched(*arguments: Any) -> list[Any]:
        seen[f"{name} in"] = [address(value) for value in arguments[-1]]
        results = list(run(*arguments))
        seen[f"{name} out"] = [address(value) for value in results]
        return results

    object.__setattr__(part, "run", watched)


def test_a_profile_has_a_line_for_every_part_of_onnxruntimes(path: Path) -> None:
    with load(path, threads=1) as session:
        times = session.profile(image(), repeats=3)
    assert [time.layer for time in times].count("onnxruntime: LSTM") == 1
    (rest,) = [time for time in times if time.symbol == "onnxruntime"]
    assert rest.ms > 0
    assert [time.symbol for time in times] == [
        call.symbol for call in read_artifact(path).manifest.calls
    ]
    assert times[0].layer == "conv1"
    assert {"fc"} <= {time.layer for time in times[times.index(rest) :]}


def test_it_is_pickled_as_any_other(path: Path, expected: Any) -> None:
    with load(path, threads=1) as session:
        again = pickle.loads(pickle.dumps(session))
    close(again.run(image())["text"], expected)


def test_a_closed_session_runs_no_more(path: Path) -> None:
    session = load(path, threads=1)
    session.close()
    session.close()
    with pytest.raises(InputError, match="is closed"):
        session.run(image())


def test_a_pinned_artifact_loads(path: Path, expected: Any) -> None:
    digest = read_artifact(path).digest
    with load(path, threads=1, digest=digest) as session:
        close(session.run(image())["text"], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": image(shape=(1, 8, 16, 15))}, "input 'x': expected shape"),
        ({"x": image().astype(np.float64)}, "input 'x': expected dtype float32"),
        ({"y": image()}, "expected the inputs 'x', found 'y'"),
    ],
)
def test_a_wrong_input_is_named(path: Path, inputs: Any, message: str) -> None:
    with load(path, threads=1) as session, pytest.raises(InputError, match=message):
        session.run(inputs)


# processes


def fresh(code: str, *arguments: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


BEGIN = """
import os, sys, threading
import numpy as np
from nmcompile.errors import DeviceError
from nmcompile.runtime import load
x = np.linspace(-1, 1, 2048, dtype=np.float32).reshape(1, 8, 16, 16)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_works_in_a_forked_process(path: Path, threads: int) -> None:
    code = """
import multiprocessing
session = load(sys.argv[1], threads=int(sys.argv[2]))
wanted = session.run(x)["text"]
def child():
    global session
    for _ in range(3):
        assert (session.run(x)["text"] == wanted).all()
    with load(sys.argv[1], threads=2) as another:
        assert np.allclose(another.run(x)["text"], wanted, atol=1e-6)
    session.close()
    del session
    sys.exit(7)
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
print(process.exitcode, (session.run(x)["text"] == wanted).all())
"""
    assert fresh(BEGIN + code, path, threads) == "7 True\n"


def test_a_process_forked_during_a_part_of_the_rest_says_that_it_cannot_run(path: Path) -> None:
    code = """
session = load(sys.argv[1], threads=2)
session.run(x)
begun, end = threading.Event(), threading.Event()
class Waiting:
    def run_with_ort_values(self, *arguments):
        begun.set()
        end.wait()
rest = session._loaded[0].parts[1]
rest._session = Waiting()
threading.Thread(target=session.run, args=(x,), daemon=True).start()
begun.wait()
if os.fork() == 0:
    try:
        session.run(x)
    except DeviceError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
os._exit(0)
"""
    assert "was forked while another thread was running" in fresh(BEGIN + code, path)


HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
sys.meta_path.insert(0, Hide())
"""


def test_without_onnxruntime_it_says_what_to_install(path: Path) -> None:
    code = """
try:
    load(sys.argv[1])
except DeviceError as error:
    print(error)
"""
    version = read_artifact(path).manifest.producer.onnxruntime
    assert version
    said = fresh(HIDE + BEGIN + code, path)
    assert f"{path} has parts that onnxruntime runs, and that is not installed here" in said
    assert f"pip install onnxruntime=={version}" in said


def test_a_model_that_is_all_ours_does_without_onnxruntime(tmp_path: Path) -> None:
    proto = model(backbone(), BACKBONE, [("a", FLOAT, None)])
    nmcompile.compile(proto, output=tmp_path / "m.nmc")
    code = """
print(load(sys.argv[1]).run(x)["a"].shape, "onnxruntime" in sys.modules)
"""
    assert fresh(HIDE + BEGIN + code, tmp_path / "m.nmc") == "(1, 16, 16, 16) False\n"


@pytest.mark.isa("avx512f", native=True)
def test_it_is_compiled_without_onnxruntime_too_and_says_what_was_not_tried(
    tmp_path: Path,
) -> None:
    onnx.save(counting(), tmp_path / "m.onnx")
    code = """
import nmcompile
result = nmcompile.compile(sys.argv[1], output=sys.argv[2])
print(result.report.notes[-1])
"""
    said = fresh(HIDE + BEGIN + code, tmp_path / "m.onnx", tmp_path / "m.nmc")
    assert "whether it takes its parts was not tried" in said
    assert read_artifact(tmp_path / "m.nmc").manifest.producer.onnxruntime == ""
    with load(tmp_path / "m.nmc", threads=1) as session:
        found = session.run(image())
    for name, wanted in zip(found, by_onnxruntime(counting(), {"x": image()}), strict=True):
        close(found[name], wanted)


# artifacts that are not what they say


Change = Callable[[Manifest, dict[str, bytes]], tuple[Manifest, dict[str, bytes]]]


def rewritten(source: Path, target: Path, change: Change) -> Path:
    artifact = read_artifact(source)
    manifest, parts = change(
        artifact.manifest, {name: bytes(content) for name, content in artifact.parts.items()}
    )
    names = [spec.name for spec in manifest.params]
    weights = dict(zip(names, artifact.params, strict=True))
    write_artifact(target, replace(manifest, params=(), sections=()), parts, weights)
    return target


def _rest(edit: Callable[[onnx.ModelProto], None]) -> Change:
    """Change the ONNX file of the part in the middle."""

    def change(manifest: Manifest, parts: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
        proto = onnx.load_model_from_string(parts["onnx.1"])
        edit(proto)
        return manifest, parts | {"onnx.1": proto.SerializeToString()}

    return change


def _rename_input(proto: onnx.ModelProto) -> None:
    old = proto.graph.input[0].name
    proto.graph.input[0].name = "renamed"
    for one in proto.graph.node:
        one.input[:] = ["renamed" if name == old else name for name in one.input]


def _another_shape(proto: onnx.ModelProto) -> None:
    """The part makes half of what the next one reads."""
    result = proto.graph.output[0]
    result.type.tensor_type.ClearField("shape")
    for one in proto.graph.node:
        one.output[:] = ["whole" if name == result.name else name for name in one.output]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value]), name)
        for name, value in (("from", 0), ("to", 8))
    )
    proto.graph.node.append(node("Slice", ["whole", "from", "to"], [result.name]))


def _another_dtype(proto: onnx.ModelProto) -> None:
    result = proto.graph.output[0]
    for one in proto.graph.node:
        one.output[:] = ["whole" if name == result.name else name for name in one.output]
    proto.graph.node.append(node("Cast", ["whole"], [result.name], to=TensorProto.INT32))
    result.type.tensor_type.elem_type = TensorProto.INT32


def _unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Magic"


def _no_onnx(manifest: Manifest, parts: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    return manifest, parts | {"onnx.1": b"no model at all"}


def _for_a_gpu(manifest: Manifest, parts: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    target = replace(manifest.target, kind="sm_80", cpu_features=())
    return replace(manifest, target=target), parts


def _other_values(manifest: Manifest, parts: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    """The first library is said to make something else than it does."""
    first, *others = manifest.values
    changed = TensorSpec(first.name, (*first.shape, 2), first.dtype)
    return replace(manifest, values=(changed, *others)), parts


def _swapped(manifest: Manifest, parts: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    return manifest, parts | {"library.0": parts["library.2"], "library.2": parts["library.0"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_onnx, "its part 'onnx.1', which onnxruntime runs, cannot be loaded"),
        (_rest(_unknown_operator), "its part 'onnx.1', which onnxruntime runs, cannot be loaded"),
        (_rest(_rename_input), r"expected its part 'onnx.1' to take .*found \['renamed'\]"),
        (_for_a_gpu, "expected a model for a GPU to be one library, found 3 steps"),
        (_other_values, "compile the model again"),
        (_swapped, "compile the model again"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_load(
    path: Path, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(rewritten(path, tmp_path / "m.nmc", change), threads=1)


@pytest.mark.parametrize("edit", [_another_shape, _another_dtype])
def test_what_onnxruntime_makes_is_checked_before_a_library_reads_it(
    path: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], None]
) -> None:
    file = rewritten(path, tmp_path / "m.nmc", _rest(edit))
    with load(file, threads=1) as session:
        with pytest.raises(ArtifactError, match="which onnxruntime makes, to be float32 of shape"):
            session.run(image())


def test_a_failure_in_onnxruntime_is_ours(tmp_path: Path) -> None:
    nodes = [*backbone(), node("Det", ["a"], ["d"]), node("Gather", ["d", "where"], ["y"], axis=1)]
    proto = model(
        nodes, BACKBONE, [("y", FLOAT, None)],
        [("x", FLOAT, SHAPE), ("where", TensorProto.INT64, [1])],
    )  # fmt: skip
    nmcompile.compile(proto, output=tmp_path / "m.nmc")
    with load(tmp_path / "m.nmc", threads=1) as session:
        assert runs(session, 15).shape == (1, 1)
        with pytest.raises(ArtifactError, match=r"which onnxruntime runs, fails: .*indices"):
            runs(session, 16)
        assert runs(session, 0).shape == (1, 1)


def runs(session: Session, index: int) -> Any:
    return session.run({"x": image(), "where": np.array([index])})["y"]


def test_weights_of_the_parts_do_not_mix(tmp_path: Path) -> None:
    """Two parts of ours of the same form, whose weights are called alike in each library."""
    nodes = [
        *backbone(),
        node("CumSum", ["a", "axis"], ["s"]),
        node("Conv", ["s", "v"], ["y"], name="second", pads=[1] * 4),
    ]
    weights = {**BACKBONE, "v": weight(64, 16, 3, 3, seed=9), "axis": np.array(3)}
    proto = model(nodes, weights, [("y", FLOAT, None)])
    nmcompile.compile(proto, output=tmp_path / "m.nmc")
    assert len(read_artifact(tmp_path / "m.nmc").manifest.steps) == 3
    with load(tmp_path / "m.nmc", threads=1) as session:
        close(session.run(image())["y"], by_onnxruntime(proto, {"x": image()})[0])
