"""Changed artifacts and models, in worker processes: never a crash, a hang or a foreign error."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import nmcompile
from nmcompile.runtime import write_artifact
from tests.fuzz.run import check_all
from tests.support.manifests import SHAPE, manifest
from tests.support.mixed_models import reader
from tests.support.runtime_models import preparing_library
from tests.support.tiny_models import conv_onnx, conv_weight, example


@pytest.fixture(scope="module")
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose weights are prepared."""
    folder = tmp_path_factory.mktemp("preparing")
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(SHAPE, np.float32) for name in "wb"}
    library = preparing_library(folder)
    write_artifact(folder / "m.nmc", manifest(prepare="prepare"), library, weights)
    return folder / "m.nmc"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which onnxruntime runs a part; the artifact of it is beside it."""
    path = tmp_path_factory.mktemp("mixed") / "base.onnx"
    onnx.save(reader(), path)
    nmcompile.compile(path, output=path.with_suffix(".nmc"))
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, sparse_onnx: Path) -> Path:
    """An artifact of two batches."""
    proto = onnx.load(sparse_onnx)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    (name,) = (value.name for value in proto.graph.input)
    shapes = [{name: (batch, *example().shape[1:])} for batch in (1, 3)]
    path = tmp_path_factory.mktemp("several") / "m.nmc"
    nmcompile.compile(proto, output=path, shapes=shapes)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "base.onnx"
    onnx.save(conv_onnx(conv_weight(), batch_norm=True), path)
    return path


def test_some_changed_artifacts(
    sparse_artifact: Path, preparing: Path, mixed: Path, several: Path
) -> None:
    for base in (sparse_artifact, preparing, mixed.with_suffix(".nmc"), several):
        counts, wrong = check_all("artifacts", base, range(1, 130), seconds=8)
        assert wrong == []
        assert counts["refused"] and counts["same"]


def test_some_changed_models(model: Path, mixed: Path) -> None:
    for base in (model, mixed):
        counts, wrong = check_all("models", base, range(1, 70), seconds=10)
        assert wrong == []
        assert counts["refused"]


@pytest.mark.long
def test_ten_thousand_changed_artifacts(
    sparse_artifact: Path, preparing: Path, mixed: Path, several: Path
) -> None:
    for base in (sparse_artifact, preparing, mixed.with_suffix(".nmc"), several):
        counts, wrong = check_all("artifacts", base, range(1000, 6000))
        assert wrong == []
        assert counts.total() == 5000


@pytest.mark.long
@pytest.mark.parametrize("share", range(4))
def test_four_thousand_changed_models(model: Path, mixed: Path, share: int) -> None:
    seeds = range(1000 + 500 * share, 1500 + 500 * share)
    for base in (model, mixed):
        counts, wrong = check_all("models", base, seeds)
        assert wrong == []
        assert counts.total() == 500
