"""Whole models of the zoo, made small, from ONNX files: they give what torch gives.

Those of `transformers` and the bench models are in `test_models.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nmcompile
from benchmarks.bench_zoo import PEER, export
from benchmarks.zoo.table import ZOO, Entry
from nmcompile import runtime

TOLERANCE = 1e-4

# Whose outputs have open sizes, or which have an LSTM.
IN_PARTS = {"crnn", "faster_rcnn", "ssd"}
# Without convolutions of images.
NEVER_SPARSE = {"marian", "temporal", "video"}
# How many attentions run in one kernel each.
ATTENTIONS = {"marian": 3, "yolo11n": 1}
# Whose operators and patterns others have too.
LONG = {
    "dbnet", "deeplab_v3", "densenet121", "edsr", "faster_rcnn", "ghostnet", "googlenet", "hrnet",
    "mobilenet_v3", "pose", "shufflenet_v2", "squeezenet", "vgg16", "yolov8n", "yolov8n_seg",
}  # fmt: skip


def names() -> Iterator[Any]:
    for name, entry in ZOO.items():
        if entry.small:
            yield pytest.param(name, marks=[pytest.mark.long] if name in LONG else [])


def small(name: str) -> Entry:
    entry = ZOO[name]
    assert entry.small is not None
    make, shape = entry.small
    return Entry(entry.family, make, shape)


def outputs_of(returned: Any) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned)


@pytest.mark.parametrize("name", list(names()))
def test_small_model_of_the_zoo_agrees(name: str, tmp_path: Path) -> None:
    entry = small(name)
    proto, output = tmp_path / "model.onnx", tmp_path / "model.nmc"
    proto.write_bytes(export(entry, "1x8@0.5"))
    result = nmcompile.compile(str(proto), output=output)
    x = torch.randn(entry.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = outputs_of(entry.build("1x8@0.5")(x))
    session = runtime.load(output, threads=1)
    found = list(session.run({"x": x.numpy()}).values())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        wanted = other.numpy()
        assert one.shape == wanted.shape and wanted.size
        # Of the largest: the scores of a few boxes may lie close together.
        assert np.abs(one - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    if name in ATTENTIONS:
        symbols = [call.symbol for call in session.profile({"x": x.numpy()}, repeats=1)]
        assert sum(name.startswith("attention_") for name in symbols) == ATTENTIONS[name]
    # A constant output would agree with anything.
    assert np.ptp(expected[0].numpy()) > 1e-2
    assert any(layer.sparse for layer in result.report.layers) == (name not in NEVER_SPARSE)
    parts = [segment.runs for segment in result.report.segments]
    assert (PEER in parts) == (name in IN_PARTS)
