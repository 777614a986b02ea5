"""The demo's promise: its models predict the same once they are compiled."""

from pathlib import Path

import numpy as np
import pytest
import torch

import nmcompile
from benchmarks.demo_digits import METHODS, agree_int8, compile_int8, missing, run_digits
from benchmarks.training import digits_net, train
from nmcompile import runtime
from nmcompile.runtime import cpu
from nmcompile.train import SUBP
from tests.support.manifests import FEATURES

pytestmark = pytest.mark.isa("avx512f")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.isa("avx512_vnni")
def test_int8_model_predicts_what_onnxruntime_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.randn(48, 1, 16, 16, generator=generator())
    torch.manual_seed(0)
    model = digits_net().eval()
    artifact = tmp_path / "digits-int8.nmc"
    quantised = compile_int8(model, images[:1], images[16:], artifact)
    with torch.no_grad():
        truth = model(images[:16]).numpy().argmax(1)
    assert agree_int8(artifact, quantised, images[:16], truth)
    assert "same prediction as onnxruntime on the same quantised model" in capsys.readouterr().out


def test_a_cpu_without_vnni_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "host", lambda: ("an old CPU", frozenset({"sse2"})))
    assert f"int8 needs the CPU features {FEATURES[0]}" in missing("int8")
    assert "an old CPU" in missing("int8")


def test_a_cpu_that_cannot_run_it_compiles_it_and_compares_the_folded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.nmc"
    assert run_digits("a model", SUBP("1x16"), path, 1, ())
    said = capsys.readouterr().out
    assert "folded, in onnxruntime" in said and "latency" not in said
    assert "same prediction for 500 of 500" in " ".join(said.split())
    assert runtime.read_artifact(path).manifest.layers


@pytest.mark.parametrize("title", METHODS)
def test_trained_model_predicts_the_same_when_compiled(title: str, tmp_path: Path) -> None:
    images = torch.randn(128, 1, 16, 16, generator=generator())
    labels = torch.randint(10, (128,), generator=generator())
    torch.manual_seed(0)
    method = METHODS[title]
    model = train(method.prepare(digits_net()), images, labels, epochs=2, method=method)
    with torch.no_grad():
        expected = model(images[:16]).numpy()
    output = tmp_path / "digits.nmc"
    result = nmcompile.compile(model, output=output, example_inputs=(images[:16],))
    found = runtime.load(output).run(images[:16])["output"]
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    pruned = [layer for layer in result.report.layers if layer.density < 0.6]
    assert len(pruned) == 3
    assert all(layer.sparse or "Winograd" in layer.reason for layer in pruned)
