"""The engines of the benchmark: each computes what torch does, or says why it does not."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from nmcompile.bench.engines import (
    AS_DEFINED,
    ENGINES,
    INT8,
    find_engine,
    is_installed,
    name_inputs,
    open_engine,
    open_row,
)
from nmcompile.bench.engines import worker as worker_module
from nmcompile.bench.engines.deep_sparse import deepsparse_version
from nmcompile.bench.matrix import parse_spec
from nmcompile.bench.quantised import output_step
from nmcompile.bench.sources import ArtifactSource, OnnxSource, TorchSource
from nmcompile.bench.variants import ArtifactVariant, FoldedVariant
from nmcompile.errors import DeclinedError, DeviceError, InputError, ModelError
from nmcompile.sparsity import check, parse_pattern
from tests.support import quantised
from tests.support.quantised import quantised_onnx
from tests.support.tiny_models import SHAPE, example, tiny_net

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
SLOW = """
import time
class Engine:
    def __init__(self, model, batch_size, num_cores):
        pass
    def run(self, inputs, val_inp):
        time.sleep(60)
"""
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}  # of the output range
INTEGERS = 1e-2  # likewise: a step or two of 8 bits in what comes before
MEASURED = [
    row for row in ENGINES if not row.name.startswith("deepsparse") and row.name != "torch-compile"
]


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> FoldedVariant:
    """The tiny model as its engines take it; its argument is not called as torch calls it."""
    source = TorchSource("tiny", "tiny", tiny_net, {"x": SHAPE})
    return FoldedVariant(source.open(2), parse_spec("2:4"), tmp_path_factory.mktemp("variant"))


@pytest.fixture(scope="module")
def expected(variant: FoldedVariant) -> Any:
    with torch.no_grad():
        return variant.module(x=images()).numpy()


def images() -> torch.Tensor:
    return example((2, *SHAPE[1:]))


@pytest.fixture(scope="module")
def as_defined(variant: FoldedVariant) -> Any:
    """What the quantised model is, operator by operator."""
    engine = open_row(AS_DEFINED, variant.quantised(), variant.shapes, 1)
    return engine.compute({"x": images().numpy()})[0]


@pytest.mark.isa("avx512_vnni")
@pytest.mark.parametrize(
    "row", [ENGINES[0], *(r for r in MEASURED if r.dtype == INT8)], ids=lambda row: row.name
)
def test_engines_in_int8_compute_the_quantised_model(
    row: Any, variant: FoldedVariant, as_defined: Any
) -> None:
    if not is_installed(row):
        pytest.skip(f"{row.name} is not installed")
    model = variant.form_of(row, "avx512_vnni")
    engine = open_engine(row.name, model, variant.shapes, 1)
    try:
        (found,), _ = engine.run(name_inputs(engine, {"x": images().numpy()}))
        assert np.abs(found - as_defined).max() <= INTEGERS * np.ptp(as_defined)
    finally:
        engine.close()


def test_quantising_stays_near_torch_and_keeps_zeros(
    variant: FoldedVariant, as_defined: Any, expected: Any
) -> None:
    assert 0 < np.abs(as_defined - expected).max() <= 0.1 * np.ptp(expected)
    tensors = onnx.load(variant.quantised()).graph.initializer
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    pruned = [w for w in weights if w.dtype == np.int8 and w.ndim == 4 and w.shape[1] == 16]
    assert len(pruned) == 2
    assert all(check(weight, parse_pattern("2:4")).ok for weight in pruned)


def test_a_model_that_came_quantised_goes_as_it_is(variant: FoldedVariant, tmp_path: Path) -> None:
    path = variant.quantised()
    source = OnnxSource("q", str(path), path)
    opened = source.open(None)
    made = FoldedVariant(opened, parse_spec("as-is"), tmp_path, file=source.file)
    assert made.came_quantised and not variant.came_quantised
    assert made.form_of(find_engine("openvino-int8"), "") == path
    with pytest.raises(DeclinedError, match="this one is quantised; measure onnxruntime-int8"):
        made.form_of(find_engine("onnxruntime"), "")
    pruned = FoldedVariant(opened, parse_spec("1:4"), tmp_path, file=source.file)
    assert pruned.form_of(find_engine("openvino-int8"), "") != path
    assert pruned.density == pytest.approx(0.25, abs=0.01)


def test_the_step_of_an_output_is_found_where_it_is_quantised(
    variant: FoldedVariant, tmp_path: Path
) -> None:
    model = quantised_onnx()
    onnx.save(model, tmp_path / "q.onnx")
    assert output_step(tmp_path / "q.onnx") == quantised.output_step(model) > 0
    assert output_step(variant.quantised()) == 0.0


def test_an_artifact_needs_a_quantised_model_beside_it(
    sparse_artifact: Path, sparse_onnx: Path
) -> None:
    made = ArtifactVariant(ArtifactSource("m", "m.nmc", sparse_artifact, sparse_onnx))
    with pytest.raises(InputError, match=r"is not quantised: .* name it with --model"):
        made.form_of(find_engine("onnxruntime-int8"), "")


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize(
    "row", [row for row in MEASURED if row.dtype != INT8], ids=lambda row: row.name
)
def test_engines_compute_what_torch_does(row: Any, variant: FoldedVariant, expected: Any) -> None:
    if not is_installed(row):
        pytest.skip(f"{row.name} is not installed")
    model = variant.form_of(row, "avx512")
    try:
        engine = open_engine(row.name, model, variant.shapes, 1)
    except DeclinedError as error:
        pytest.skip(str(error))
    try:
        (found,), seconds = engine.run(name_inputs(engine, {"x": images().numpy()}))
        assert np.abs(found - expected).max() <= TOLERANCE[row.dtype] * np.ptp(expected)
        assert seconds > 0 and engine.version
    finally:
        engine.close()


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_torch_compiles_a_model() -> None:
    # Smaller than the other engines' model: every fused loop is a run of the C++ compiler.
    source = TorchSource("tiny", "tiny", lambda: torch.nn.Conv2d(4, 8, 3), {"input": (1, 4, 8, 8)})
    folded = source.open(None)
    x = example((1, 4, 8, 8))
    engine = open_engine("torch-compile", folded.native(), {"input_1": (1, 4, 8, 8)}, 1)
    (found,), _ = engine.run({"input_1": x.numpy()})
    with torch.no_grad():
        expected = folded.native()(input=x).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_whose_argument_torch_renames_runs_everywhere(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3))
    source = TorchSource("net", "net", lambda: net, {"input": (1, 4, 8, 8)})
    made = FoldedVariant(source.open(None), parse_spec("as-is"), tmp_path)
    x = example((1, 4, 8, 8)).numpy()
    outputs = []
    for name in ("onnxruntime", "torch"):
        engine = open_engine(name, made.form_of(find_engine(name), ""), made.shapes, 1)
        outputs.append(engine.compute(name_inputs(engine, {"x": x}))[0])
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_the_table_has_one_row_per_name() -> None:
    names = [row.name for row in ENGINES]
    assert len(names) == len(set(names)) and names[0] == "nmcompile"
    assert find_engine("openvino").name == "openvino-f32"
    with pytest.raises(InputError, match="'fastruntime' is unknown; expected one of: nmcompile"):
        find_engine("fastruntime")


def test_a_model_that_an_engine_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"onnxruntime cannot load .*m\.onnx"):
        open_engine("onnxruntime", tmp_path / "m.onnx", {}, 1)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"not installed here .*pip install 'nmcompile\[bench\]'"):
        open_engine("openvino-f32", tmp_path / "m.onnx", {}, 1)


def test_torch_declines_onnx_models(sparse_onnx: Path, tmp_path: Path) -> None:
    source = OnnxSource("m", str(sparse_onnx), sparse_onnx)
    made = FoldedVariant(source.open(None), parse_spec("as-is"), tmp_path)
    with pytest.raises(DeclinedError, match="name its factory"):
        made.form_of(find_engine("torch"), "")


def test_inputs_go_by_name_or_else_by_order(sparse_onnx: Path) -> None:
    engine = open_engine("onnxruntime", sparse_onnx, {"x": SHAPE}, 1)
    x = np.zeros(SHAPE, np.float32)
    assert list(name_inputs(engine, {"image": x})) == ["x"]
    with pytest.raises(InputError, match="takes the inputs x, the artifact takes a, b"):
        name_inputs(engine, {"a": x, "b": x})


# Engines in processes of their own


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
    (folder / "m.onnx").write_bytes(b"model")
    monkeypatch.setenv("NMC_DEEPSPARSE", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(metadata.parent))


def test_deepsparse_runs_in_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, DOUBLING, monkeypatch)
    assert deepsparse_version() == "1.8.0" and is_installed(find_engine("deepsparse"))
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    engine = open_engine("deepsparse", tmp_path / "m.onnx", {"x": x.shape}, 1)
    try:
        assert engine.version == "1.8.0"
        for image in (x, x + 1):
            (output,), seconds = engine.run({"x": image})
            np.testing.assert_array_equal(output, 2 * image)
            assert seconds > 0
    finally:
        engine.close()


def test_deepsparse_that_refuses_a_model_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, REFUSING, monkeypatch)
    with pytest.raises(DeviceError, match="operator Foo is not known"):
        open_engine("deepsparse", tmp_path / "m.onnx", {}, 1)


def test_an_engine_that_never_ends_is_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, SLOW, monkeypatch)
    engine = open_engine("deepsparse", tmp_path / "m.onnx", {"x": (1,)}, 1)
    monkeypatch.setattr(worker_module, "RUN_LIMIT", 0.1)
    with pytest.raises(DeclinedError, match=r"more than 0\.1 s for one run: too slow"):
        engine.run({"x": np.zeros(1, np.float32)})
    engine.close()


def test_missing_deepsparse_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMC_DEEPSPARSE", str(tmp_path / ".venv-deepsparse"))
    assert not is_installed(find_engine("deepsparse"))
    with pytest.raises(DeviceError, match=r"\.venv-deepsparse: run `make deepsparse`"):
        deepsparse_version()
