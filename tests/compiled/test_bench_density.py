"""Break-even densities: how they are found, told and drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_density import (
    FAMILIES,
    Family,
    heaviest,
    parse_arguments,
    time_layer,
)
from benchmarks.density import (
    Layer,
    Result,
    caption,
    picture,
    read_result,
    tables,
    write_result,
)
from benchmarks.peer_layers import ENGINES, layer_model
from benchmarks.problems import MAKERS, make_int8_problem
from benchmarks.shapes import read_shapes
from nmcompile.bench.break_even import break_even
from nmcompile.bench.engines import find_engine, is_installed
from nmcompile.kernels.catalog import choose
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import Dense
from tests.support.integer_runner import run_integers
from tests.support.quantised import as_defined

DENSITIES = [1.0, 0.5, 0.25]


@pytest.fixture
def result() -> Result:
    """Two layers, of which the first counts three times: one family breaks even at 0.8."""
    first = Layer("a", 3, "dense", 1.0, {"early": [1.3, 0.6, 0.3], "late": [0.9, 0.5, 0.2]})
    second = Layer("b", 1, "dense", 2.0, {"early": [2.1, 1.7, 0.6], "late": [2.0, 1.0, 0.5]})
    machine = {"cpu": "a CPU"}
    return Result(machine, "resnet50", 0.9, 1, DENSITIES, ["early", "late"], [first, second])


@pytest.mark.parametrize(
    ("work", "overhead", "expected"),
    [(1.0, 0.25, 0.75), (2.0, 0.0, 0.5), (0.5, 0.9, 0.2), (0.9, 0.0, 1.0), (0.5, 1.2, None)],
)
def test_break_even_of_a_line_in_time_is_exact(
    work: float, overhead: float, expected: float | None
) -> None:
    densities = [0.125, 1.0, 0.4, 0.25]
    found = break_even(densities, [1 / (overhead + work * density) for density in densities])
    assert found == (expected if expected is None else pytest.approx(expected))


def test_break_even_is_the_lowest_crossing() -> None:
    assert break_even([1.0, 0.8, 0.6, 0.4], [1.1, 0.9, 1.1, 2.0]) == pytest.approx(0.7, abs=0.02)


def test_layers_are_weighted_by_their_count(result: Result) -> None:
    assert result.speed_ups("early") == pytest.approx([5 / 6, 5 / 3.5, 5 / 1.5])
    # 6.0 ms at density 1, 3.5 ms at density 0.5, 5 ms dense.
    assert result.break_even("early") == pytest.approx(0.8)
    assert result.break_even("late") == 1.0


def test_result_survives_its_file(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "results" / "density.json"
    write_result(result, path)
    assert read_result(path) == result


def test_caption_and_tables_state_the_break_evens(result: Result) -> None:
    assert "Break-even density: early: 0.80; late: never slower." in caption(result, "ResNet-50")
    totals, layers = tables(result)
    assert totals.row_count == len(DENSITIES) + 1
    assert layers.row_count == 2
    assert result.said(None) == "never faster"


def test_picture_is_drawn(result: Result, tmp_path: Path) -> None:
    picture(result, "ResNet-50", tmp_path / "density.png")
    assert (tmp_path / "density.png").stat().st_size > 0


def test_heaviest_layers_make_up_the_share() -> None:
    shapes = read_shapes("resnet50")
    every, whole = heaviest(shapes, 1.0)
    assert whole == 1.0
    assert set(every) == {entry for entry in shapes if entry[0].in_channels > 3}
    some, share = heaviest(shapes, 0.5)
    work = [conv.macs * count for conv, count in every]
    assert some == every[: len(some)]
    assert sum(work[: len(some) - 1]) < 0.5 * sum(work) <= sum(work[: len(some)])
    assert share == pytest.approx(sum(work[: len(some)]) / sum(work))


def test_depthwise_layers_are_left_out() -> None:
    layers, _ = heaviest(read_shapes("mobilenet_v1"), 1.0)
    assert layers and all(conv.groups == 1 for conv, _ in layers)


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize(
    ("dtype", "family"),
    [(dtype, family) for dtype, families in FAMILIES.items() for family in families],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_families_stay_sparse_above_break_even(dtype: str, family: Family, density: float) -> None:
    conv = Conv2d(1, 32, 14, 14, 32, (3, 3), padding=(1, 1, 1, 1))
    row = family.row(MAKERS[dtype](conv, family.pattern_at(density), density))
    assert row.sparse and row.dtype == dtype
    assert family.kernel in (None, row.name)


@pytest.mark.parametrize(
    ("dtype", "dense"),
    [
        pytest.param("float32", "conv2d_f32_dense__avx512", marks=pytest.mark.isa("avx512f")),
        pytest.param("int8", "conv2d_i8_dense__avx512_vnni", marks=pytest.mark.isa("avx512_vnni")),
    ],
)
def test_a_layer_is_timed_in_all_families(dtype: str, dense: str) -> None:
    layer = time_layer(Conv2d(1, 16, 8, 8, 16, (1, 1)), 2, [1.0, 0.5], 1, dtype)
    assert layer.shape == "16->16 1x1/1 8²"
    assert layer.dense == dense
    assert list(layer.ms) == [family.name for family in FAMILIES[dtype]]
    assert all(len(times) == 2 for times in layer.ms.values())
    installed = [name for name in ENGINES[dtype] if is_installed(find_engine(name))]
    assert list(layer.peers) == installed and min(layer.peers.values(), default=1.0) > 0


@pytest.mark.isa("avx512_vnni")
def test_other_engines_are_given_the_same_convolution() -> None:
    problem = make_int8_problem(Conv2d(1, 32, 7, 9, 16, (3, 3), (2, 2), (1, 1, 1, 1)), Dense())
    x = np.random.default_rng(1).integers(0, 256, (1, 7, 9, 32)).astype(np.uint8)
    row = choose("conv2d", "avx512_vnni", problem).kernel
    ours = run_integers(row, problem, x, None)
    (theirs,) = as_defined(layer_model(problem), {"x": x.transpose(0, 3, 1, 2)})
    difference = np.abs(ours.astype(int) - theirs.transpose(0, 2, 3, 1))
    assert ours.any() and difference.max() <= 1


def test_break_even_over_another_engine_counts_its_speed(result: Result) -> None:
    assert result.peer is None and result.break_even_over_peer("early") is None
    layers = [replace(layer, peers={"quick": 0.5, "slow": 3.0}) for layer in result.layers]
    faster = replace(result, layers=layers)
    # 3 * 0.5 + 0.5 ms, where our dense kernels take 5 ms, and 3.5 and 1.5 ms at 0.5 and 0.25.
    assert faster.peer == ("quick", 2.0) and faster.peer_speed == 2.5
    found = faster.break_even_over_peer("early")
    assert found == pytest.approx(0.25 + 0.25 * (2 - 1.5) / (3.5 - 1.5))
    assert "2.50x as fast as ours: early: 0.31" in caption(faster, "ResNet-50")


@pytest.mark.parametrize(
    "words",
    [
        ["--densities", "1"],
        ["--densities", "1,half"],
        ["--densities", "1,0"],
        ["--share", "0"],
        ["--share", "most"],
        ["--model", "resnet51"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(words)
    assert stop.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err
