"""The shape files say what the bench models are made of, and their rows can be measured."""

from pathlib import Path

import pytest

from benchmarks import shapes
from benchmarks.bench_kernels import table_of, time_kernel
from benchmarks.models import MODELS, build
from benchmarks.problems import problem_of
from nmcompile.kernels.spec import Conv2d
from nmcompile.machine.roofs import Roofs
from nmcompile.runtime import cpu
from nmcompile.targets import find_target


@pytest.mark.parametrize("name", MODELS)
def test_files_agree_with_the_models(name: str) -> None:
    assert shapes.read_shapes(name) == shapes.shapes_of(build(name))


def test_damaged_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.txt").write_text("# header\n1 2 3\n")
    monkeypatch.setattr(shapes, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"odd\.txt, line 2: expected the 9 whole numbers"):
        shapes.read_shapes("odd")


@pytest.mark.isa("avx512f")
def test_a_row_is_measured_against_the_roof_that_bounds_it() -> None:
    conv = Conv2d(1, 16, 8, 8, 16, (1, 1))
    row = time_kernel("tiny", conv, 2, "2:4", 1, Roofs(fma=100.0, load=50.0))
    assert row.kernel == "conv2d_f32_nm__avx512" and row.roof == "load"
    assert row.nonzero_gflops == pytest.approx(row.dense_equivalent_gflops / 2)
    assert row.roof_share == pytest.approx(row.nonzero_gflops / 50.0)
    assert table_of([row], Roofs(100.0, 50.0)).row_count == 1


@pytest.mark.isa("avx512_vnni")
def test_a_row_of_integers_is_measured_against_its_roof() -> None:
    conv, roofs = Conv2d(1, 16, 8, 8, 16, (1, 1)), Roofs(fma=100.0, load=50.0, vnni=400.0)
    row = time_kernel("tiny", conv, 2, "dense", 1, roofs, "int8")
    assert row.kernel == "conv2d_i8_dense__avx512_vnni" and row.roof == "vnni"
    assert row.roof_share == pytest.approx(row.nonzero_gflops / 400.0)


@pytest.mark.parametrize(
    ("target", "dtype", "short", "roof"),
    [
        ("avx512_bf16", "bfloat16", "bf16", "bf16"),
        ("avx512_amx", "int8", "i8", "amx_int8"),
        ("avx512_amx", "bfloat16", "bf16", "amx_bf16"),
    ],
)
def test_rows_of_other_precisions_are_measured_against_theirs(
    target: str, dtype: str, short: str, roof: str
) -> None:
    features = find_target(target).cpu_features
    if missing := set(features) - cpu.host()[1]:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    cpu.require(features, "this test")
    conv = Conv2d(1, 64, 8, 8, 64, (3, 3), padding=(1, 1, 1, 1))
    bounds = {"bf16": 200.0, "amx_int8": 4000.0, "amx_bf16": 2000.0}
    roofs = Roofs(fma=100.0, load=50.0, **bounds)
    row = time_kernel("tiny", conv, 2, "dense", 1, roofs, dtype, target)
    assert row.kernel == f"conv2d_{short}_dense__{target}" and row.ms > 0
    assert row.roof == roof
    assert row.roof_share == pytest.approx(row.nonzero_gflops / bounds[roof])


def test_stems_are_not_pruned() -> None:
    assert problem_of(Conv2d(1, 3, 8, 8, 16, (3, 3)), "2:4") is None
    assert problem_of(Conv2d(1, 3, 8, 8, 16, (3, 3)), "dense") is not None
