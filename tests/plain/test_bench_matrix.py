"""Which cases come of the options, and which of them take turns."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nmcompile.bench.engines import find_engine
from nmcompile.bench.forms import read_form
from nmcompile.bench.matrix import expand, parse_spec
from nmcompile.bench.sources import OnnxSource, TorchSource, unique_names
from nmcompile.bench.variants import FoldedVariant
from nmcompile.errors import ModelError, PatternError, ShapeError, TargetError
from nmcompile.sparsity import check, parse_pattern
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, tiny_net


@pytest.mark.parametrize(
    ("text", "spelled", "changes"),
    [
        ("as-is", "", False),
        ("dense", "dense", False),
        ("2:4", "2:4", True),
        ("2:4@flat", "2:4@flat", True),
        ("1x16@0.50", "1x16@0.5", True),
        ("unstructured@.1", "unstructured@0.1", True),
    ],
)
def test_patterns_are_read(text: str, spelled: str, changes: bool) -> None:
    spec = parse_spec(text)
    assert (spec.text, spec.changes_weights) == (spelled, changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1x16", "expected the share of weights to keep behind it"),
        ("1x16@1.5", "found 1.5"),
        ("2:4@0.5", "says itself how much is kept"),
        ("3by5", "is not understood"),
    ],
)
def test_patterns_that_are_none_are_named(text: str, said: str) -> None:
    with pytest.raises(PatternError, match=f"{text}.*{said}"):
        parse_spec(text)


def test_engines_that_do_not_see_zeros_run_once_per_group() -> None:
    patterns = [parse_spec("2:4"), parse_spec("1x16@0.5")]
    engines = [find_engine(name) for name in ("onnxruntime", "nmcompile", "deepsparse")]
    groups = expand(["a", "b"], patterns, ["avx512"], [1, 2], [1, 8], engines)
    assert [(g.model, g.batch, g.threads) for g in groups[:4]] == [
        *(("a", 1, 1), ("a", 1, 2), ("a", 8, 1), ("a", 8, 2))
    ]
    assert len(groups) == 8
    cases = [(s.engine.name, s.pattern.text, s.target) for s in groups[0].settings]
    assert cases == [
        ("nmcompile", "2:4", "avx512"),
        ("nmcompile", "1x16@0.5", "avx512"),
        ("onnxruntime", "dense", ""),
        ("deepsparse", "2:4", ""),
        ("deepsparse", "1x16@0.5", ""),
    ]


def test_ours_computes_in_what_its_target_does() -> None:
    engines = [find_engine(name) for name in ("nmcompile", "onnxruntime-int8", "onnxruntime")]
    targets = ["avx512", "avx512_vnni", "avx512_amx", "avx512_bf16:bf16", "sm_80"]
    (group,) = expand(["a"], [parse_spec("2:4")], targets, [1], [None], engines)
    assert [(s.engine.name, s.pattern.text, s.dtype) for s in group.settings] == [
        ("nmcompile", "2:4", "float32"),
        ("nmcompile", "2:4", "int8"),
        ("nmcompile", "2:4", "int8"),
        ("nmcompile", "2:4", "bfloat16"),
        ("nmcompile", "2:4", "float16"),
        ("onnxruntime-int8", "dense", "int8"),
        ("onnxruntime", "dense", "float32"),
    ]


def test_precisions_behind_a_target() -> None:
    for text in ("avx512_amx:bf16", "avx512_bf16:bf16"):
        assert read_form(text) == text
    for text in ("avx512_vnni:bf16", "avx512_amx:int8", "avx512_amx:"):
        with pytest.raises(TargetError, match="avx512_amx:bf16"):
            read_form(text)
    with pytest.raises(TargetError, match="unknown"):
        read_form("z80:bf16")


def test_weights_that_stay_are_what_the_others_run_too() -> None:
    (group,) = expand(
        ["a"], [parse_spec("as-is")], ["avx512"], [1], [None], [find_engine("onnxruntime")]
    )
    assert [setting.pattern.text for setting in group.settings] == [""]


def test_models_get_short_names_of_their_own(tmp_path: Path) -> None:
    assert unique_names(["a/net.onnx", "b/net.onnx", "zoo.small:net", "net.nmc"]) == [
        *("net", "net-2", "net-3", "net-4")
    ]


def test_a_variant_has_the_pattern_and_its_density(tmp_path: Path) -> None:
    source = TorchSource("tiny", "tiny", tiny_net, {"x": SHAPE}).open(1)
    variant = FoldedVariant(source, parse_spec("2:4"), tmp_path)
    assert variant.density == 0.5
    weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(variant.onnx).graph.initializer]
    pruned = [w for w in weights if w.ndim == 4 and w.shape[1] == 16]
    assert len(pruned) == 2
    assert all(check(weight, parse_pattern("2:4")).ok for weight in pruned)
    as_is = FoldedVariant(source, parse_spec("as-is"), tmp_path)
    assert as_is.density == 1.0
    assert as_is.macs == variant.macs > 0


def test_an_open_batch_is_fixed_and_a_fixed_one_kept(tmp_path: Path) -> None:
    onnx.save(conv_onnx(conv_weight(), batch="N"), tmp_path / "open.onnx")
    onnx.save(conv_onnx(conv_weight(), batch=2), tmp_path / "two.onnx")
    opened = OnnxSource("open", "open.onnx", tmp_path / "open.onnx")
    assert opened.open(8).inputs == (("x", (8, 16, 8, 8), "float32"),)
    assert opened.open(None).inputs == (("x", (1, 16, 8, 8), "float32"),)
    fixed = OnnxSource("two", "two.onnx", tmp_path / "two.onnx")
    assert fixed.open(2).inputs == fixed.open(None).inputs == (("x", (2, 16, 8, 8), "float32"),)
    with pytest.raises(ShapeError, match=r"two\.onnx fixes the batch of its input x at 2"):
        fixed.open(8)


def test_a_checkpoint_is_loaded_into_the_factorys_model(tmp_path: Path) -> None:
    trained = tiny_net("2:4")
    torch.save(trained.state_dict(), tmp_path / "best.pth")
    shapes = {"x": SHAPE}
    loaded = TorchSource("tiny", "tiny", tiny_net, shapes, tmp_path / "best.pth")
    plain = TorchSource("tiny", "tiny", tiny_net, shapes)
    assert loaded.digest() == TorchSource("t", "t", lambda: trained, shapes).digest()
    assert loaded.digest() != plain.digest()
    wide = next(n for n in loaded.open(1).graph.layers() if "wide" in n.name)
    assert np.count_nonzero(wide.weight) == wide.weight.size / 2


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    for name in ("m.onnx", "missing.onnx"):
        with pytest.raises(ModelError, match=name):
            OnnxSource("m", name, tmp_path / name).open(1)
