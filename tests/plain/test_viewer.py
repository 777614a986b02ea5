"""What the page of a model shows: lanes, the graph of a manifest, maps of weights, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from nmcompile.bench.results import Artifact, LayerRow, write_run
from nmcompile.errors import InputError
from nmcompile.runtime import Call, Manifest
from nmcompile.runtime.steps import LIBRARY, ONNX, Step
from nmcompile.sparsity import NM, OneByN, parse_pattern, project
from nmcompile.viewer import render_view
from nmcompile.viewer.graph import LoweredGraph, read_graph
from nmcompile.viewer.lanes import lay_out
from nmcompile.viewer.maps import chosen_layers, make_pictures
from nmcompile.viewer.page import Subject
from nmcompile.viewer.times import read_times
from nmcompile.viewer.weights import draw_text, weight_map
from tests.plain.test_bench_results import make_case, make_run
from tests.support.manifests import manifest
from tests.support.report_runs import HOSTILE, change


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """For each operator those before it that it reads."""
    count = draw(st.integers(1, 24))
    return [
        draw(st.lists(st.integers(0, row - 1), max_size=4, unique=True)) if row else []
        for row in range(count)
    ]


@given(graphs())
def test_a_lane_holds_one_tensor_from_its_maker_to_its_last_reader(reads: list[list[int]]) -> None:
    rows = lay_out(reads)
    last = {source: row for row, sources in enumerate(reads) for source in sources}
    held: dict[int, int] = {}  # maker by lane
    for row, (lines, sources) in enumerate(zip(rows, reads, strict=True)):
        assert sorted(held) == list(lines.above)
        assert {held[lane] for lane in lines.reads} == set(sources)
        assert {held[lane] for lane in lines.passing} == {m for m in held.values() if last[m] > row}
        held = {lane: maker for lane, maker in held.items() if last[maker] > row}
        assert lines.lane not in held
        assert lines.writes == (row in last)
        if lines.writes:
            held[lines.lane] = row
        assert sorted(held) == list(lines.below)
        # No lane stays free on the left of one that is given out.
        assert lines.lane <= len(held)


def test_the_trunk_of_a_residual_network_stays_on_the_left() -> None:
    blocks = [[], [0], [1, 0], [2], [3, 2]]
    assert [row.lane for row in lay_out(blocks)] == [0, 1, 0, 1, 0]


def test_what_reads_a_later_row_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 reads row 1"):
        lay_out([[1], []])


def entry(call: int, reads: Sequence[int | str], *makes: str) -> dict[str, Any]:
    return {"call": call, "reads": [*reads], "shape": [1, 8], "makes": [*makes]}


def layer(name: str, *flow: Any, **facts: Any) -> dict[str, Any]:
    known = {"name": name, "sparse": True, "density": 0.5, "macs": 100, "shape": [8, 8]}
    return known | {"pattern": "2:4", "axis": "ic"} | facts | {"flow": [*flow]}


def residual() -> Manifest:
    """x -> a -> pooling -> b(+ pooling's result) -> y."""
    made = replace(
        manifest(calls=(Call("conv__avx512_0", "a"), Call("pool__avx512_0", "pool_1"))),
        layers=(
            layer("a", entry(0, ["x"])),
            layer("b", entry(1, [0]), entry(2, [1]), entry(3, [1, 2], "y")),
        ),
    )
    calls = (*made.calls, Call("relu", "relu"), Call("conv__avx512_1", "b"))
    return replace(made, calls=calls)


def edges(graph: LoweredGraph) -> dict[str, list[str]]:
    return {node.name: [graph.nodes[read].name for read in node.reads] for node in graph.nodes}


def test_the_graph_is_what_the_layers_say_of_calls() -> None:
    graph = read_graph(residual(), {})
    assert graph.joined and not graph.unplaced
    wanted = {"x": [], "a": ["x"], "pool_1": ["a"], "relu": ["pool_1"], "b": ["pool_1", "relu"]}
    assert edges(graph) == wanted | {"y": ["b"]}
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds == {
        "x": "end", "a": "sparse", "pool_1": "plain", "relu": "tvm", "b": "sparse", "y": "end",
    }  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        None,
        3,
        [[]],
        [{"call": "0"}],
        [{"call": 0, "reads": [{}], "shape": [1]}],
        [{"call": 0, "reads": ["x"], "shape": [-1]}],
        [{"call": 0, "reads": ["x"], "shape": [1], "makes": 3}],
    ],
)
def test_without_flow_calls_stand_behind_each_other_and_the_page_says_so(damage: Any) -> None:
    whole = residual()
    layers = tuple(facts | {"flow": damage} for facts in whole.layers)
    subject = Subject("m", replace(whole, layers=layers), {})
    graph = read_graph(subject.manifest, {})
    assert not graph.joined
    assert edges(graph)["b"] == ["relu"] and edges(graph)["y"] == ["b"]
    assert "does not say who reads what" in render_view(subject)


def test_groups_of_a_batch_are_one_row() -> None:
    calls = (Call("c__avx512_0", "a"), Call("c__avx512_1", "b")) * 2 + (Call("join", "join"),)
    flow = [entry(0, ["x"]), entry(1, [0]), entry(2, ["x"]), entry(3, [2]), entry(4, [1, 3], "y")]
    layers = (layer("a", flow[0], flow[2]), layer("b", flow[1], *flow[3:]))
    graph = read_graph(replace(manifest(calls=calls), layers=layers), {})
    assert edges(graph) == {"x": [], "a": ["x"], "b": ["a"], "join": ["b"], "y": ["join"]}
    assert [node.calls for node in graph.nodes] == [1, 2, 2, 1, 1]


def test_a_layer_that_runs_again_on_its_own_result_has_two_rows() -> None:
    calls = (Call("c__avx512_0", "a"), Call("r", "r"), Call("c__avx512_0", "a"))
    flow = (entry(0, ["x"]), entry(1, [0]), entry(2, [1], "y"))
    graph = read_graph(replace(manifest(calls=calls), layers=(layer("a", *flow),)), {})
    assert [node.name for node in graph.nodes] == ["x", "a", "r", "a", "y"]


def sorting() -> tuple[Manifest, dict[str, bytes]]:
    """A convolution of ours, then two operators of onnxruntime's, one of which has a subgraph."""
    inner = helper.make_graph(
        [helper.make_node("Neg", ["s"], ["n"])], "then", [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)],
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value_float=1.0),
            helper.make_node("Sort", ["t"], ["s"], name=HOSTILE, domain="other"),
            helper.make_node("If", ["c"], ["y"], "choice", then_branch=inner, else_branch=inner),
        ],
        "rest",
        [value("t", TensorProto.FLOAT, [1, 8]), value("c", TensorProto.BOOL, [])],
        [value("y", TensorProto.FLOAT, None)],
        value_info=[value("s", TensorProto.FLOAT, [1, 8])],
    )  # fmt: skip
    about = {"runs": "onnxruntime", "nodes": 2, "operators": {"Sort": 1}, "reasons": [HOSTILE]}
    made = replace(
        manifest(calls=(Call("conv__avx512_0", "a"), Call("onnxruntime", "onnxruntime: Sort"))),
        layers=(layer("a", entry(0, ["x"], "t")), layer(HOSTILE, sparse=False, reason=HOSTILE)),
        steps=(
            Step(LIBRARY, "library.0", ("x",), ("t",), "main", "", 0),
            Step(ONNX, "onnx.1", ("t",), ("y",), about=about),
        ),
    )
    return made, {"onnx.1": helper.make_model(graph).SerializeToString()}


def test_operators_of_a_part_are_read_from_its_file() -> None:
    graph = read_graph(*sorting())
    assert edges(graph) == {
        "x": [],
        "a": ["x"],
        HOSTILE: ["a"],
        "choice": [HOSTILE],
        "y": ["choice"],
    }
    sort = graph.nodes[2]
    assert (sort.kind, sort.what, sort.shape, sort.part) == ("rest", "Sort", (1, 8), 1)
    assert sort.facts["reason"] == HOSTILE
    assert [(part.runs, part.nodes) for part in graph.parts] == [
        ("nmcompile", None),
        ("onnxruntime", 2),
    ]


@pytest.mark.parametrize("content", [{}, {"onnx.1": b"\xff\xff damaged"}])
def test_a_part_whose_file_cannot_be_read_is_one_row(content: dict[str, bytes]) -> None:
    made, _ = sorting()
    graph = read_graph(made, content)
    assert edges(graph) == {"x": [], "a": ["x"], "onnxruntime": ["a"], "y": ["onnxruntime"]}
    assert [facts["name"] for facts in graph.unplaced] == [HOSTILE]


def test_names_from_files_stay_text() -> None:
    made, contents = sorting()
    subject = Subject(HOSTILE, made, contents, notes=[HOSTILE])
    page = render_view(subject, pictures=make_pictures({HOSTILE: np.eye(8)}, {}, [HOSTILE])[0])
    assert HOSTILE not in page
    assert "<img src=http" not in page and "</script><b>" not in page
    assert page.count("<script") == 1


PATTERNS = ["2:4", "1:4", "2:4@flat", "4:8@ohwi", "1x4", "1x16", "unstructured", "dense"]
SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))


@given(st.sampled_from(PATTERNS), SHAPES, st.integers(0, 9))
def test_every_cell_is_the_weight_that_it_stands_for(
    text: str, shape: tuple[int, int, int, int], seed: int
) -> None:
    random = np.random.default_rng(seed).standard_normal(shape)
    weight = project(random, parse_pattern(text), 0.5 if text[:2] in ("1x", "un") else None)
    found = weight_map(weight)
    _, i, kh, kw = shape
    for (row, column), kept in np.ndenumerate(found.mask):
        taps = kh * kw
        channel, tap = (column % i, column // i) if found.order == "hwi" else divmod(column, taps)
        assert kept == (weight[found.channels[row], channel, tap // kw, tap % kw] != 0)
    assert found.density == pytest.approx(np.count_nonzero(weight) / weight.size)
    assert sum(k * number for k, number in found.counts.items()) == (
        np.count_nonzero(weight) if found.counts else 0
    )
    if isinstance(found.pattern, NM):
        assert max(found.counts) <= found.pattern.n
    bins, (high, wide) = found.binned(5, 7)
    assert bins.shape[0] <= 5 and bins.shape[1] <= 7
    corner = found.mask[:high, :wide]
    assert bins[0, 0] == pytest.approx(np.count_nonzero(corner) / corner.size)


def test_scattered_blocks_are_drawn_together() -> None:
    random = np.random.default_rng(0)
    weight = project(random.standard_normal((32, 16, 3, 3)), OneByN(16), 0.5)
    found = weight_map(weight[random.permutation(32)])
    assert found.pattern == OneByN(16)
    assert set(found.counts) == {0, 16 * 9}


def test_a_corner_in_characters_has_lines_between_groups() -> None:
    weight = np.array([[1.0, 0, 2, 0, 0, 3, 0, 4], [0, 5, 6, 0, 7, 8, 0, 0]])
    assert draw_text(weight_map(weight), 9, 80) == ["#.#.|.#.#", ".##.|##.."]
    assert draw_text(weight_map(weight), 1, 4) == ["#.#."]
    blocks = np.zeros((4, 4))
    blocks[:2, 1] = blocks[2:, 0] = 1.0
    assert draw_text(weight_map(blocks), 9, 80) == [".#..", ".#..", "----", "#...", "#..."]


def test_layers_are_chosen_by_name_and_wildcard() -> None:
    names = ["a.conv[1]", "a.conv2", "b.conv"]
    assert chosen_layers(names, ["b.conv", "a.*"]) == names
    assert chosen_layers(names, ["a.conv[1]"]) == ["a.conv[1]"]
    with pytest.raises(
        InputError, match=r"no layer is called 'b.con': expected .* such as b\.conv"
    ):
        chosen_layers(names, ["b.con"])


def test_layers_with_zeros_have_maps_unless_others_are_named() -> None:
    weights: dict[str, Any] = {"full": np.ones((8, 8)), "half": np.eye(8), "unknown": None}
    assert [p.name for p in make_pictures(weights, {}, [])[0]] == ["half"]
    assert [p.name for p in make_pictures(weights, {}, ["full"])[0]] == ["full"]
    assert make_pictures({"full": weights["full"]}, {}, []) == (
        [],
        "No layer has weights that are zero.",
    )
    with pytest.raises(InputError, match="layer unknown: its weight cannot be read"):
        make_pictures(weights, {}, ["unknown"])


def test_a_large_weight_is_binned_and_says_so() -> None:
    weight = np.random.default_rng(0).random((512, 9216)) < 0.5
    (picture,), said = make_pictures({"large": weight}, {}, [])
    assert any("a cell of the overview is 6 x 24 of them" in text for text in picture.said)
    assert any("the first 128 rows and 1152 columns" in text for text in picture.said)
    assert "--layer NAME` shows all" in said


def row(name: str, symbol: str, ms: float) -> LayerRow:
    return LayerRow(
        layer=name, symbol=symbol, pattern="2:4", density=0.5, ms=ms, nonzero_gflops=10.0,
        dense_equivalent_gflops=20.0, roof=None, roof_share=0.5, lost_ms=None,
    )  # fmt: skip


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Profiles of `residual`, whose relu takes most, and of another model."""
    rows = [
        row("a", "conv__avx512_0", 1.0), row("pool_1", "pool__avx512_0", 0.5),
        row("relu", "relu", 7.5), row("b", "conv__avx512_1", 1.0),
    ]  # fmt: skip
    facts = Artifact(digest="d" * 64, nbytes=1, dense_nbytes=1, compile_s=1.0, load_ms=1.0)
    other = change(make_case(), layers=rows[:1], artifact=change(facts, digest="e" * 64))
    ours = change(make_case(), layers=rows, artifact=facts)
    write_run(make_run(make_case(), other, ours, change(ours, threads=2)), tmp_path / "run.json")
    return tmp_path / "run.json"


@pytest.mark.parametrize("digest", ["d" * 64, ""])
def test_times_are_those_of_the_same_artifact_or_calls(profile: Path, digest: str) -> None:
    times = read_times(profile, residual(), digest)
    assert times.total == 10.0 and times.others == 1
    assert times.said == "1 thread, batch 1, on a CPU, 2026-01-01"
    page = render_view(Subject("m", residual(), {}), times)
    assert "7.5 ms, 75.0% of the run" in page and "1 more profile of this model" in page


@pytest.mark.parametrize("digest", ["f" * 64, ""])
def test_a_profile_of_another_model_is_refused(profile: Path, digest: str) -> None:
    stranger = manifest(calls=(Call("conv__avx512_0", "stranger"),))
    with pytest.raises(
        InputError, match=r"found those of net 2:4 \(eeeeeeeeeeee\), net 2:4 \(dddd"
    ):
        read_times(profile, stranger, digest)


def test_a_file_without_profiles_is_refused(tmp_path: Path) -> None:
    write_run(make_run(make_case()), tmp_path / "run.json")
    with pytest.raises(
        InputError, match=r"has no profile: expected one of .*; measure it with nmc"
    ):
        read_times(tmp_path / "run.json", residual(), "")


def test_calls_that_share_a_function_share_its_time(tmp_path: Path) -> None:
    calls = (Call("conv__avx512_0", "a"), Call("relu", "relu"), Call("relu", "relu"))
    flow = (entry(0, ["x"]), entry(1, [0]), entry(2, [1], "y"))
    made = replace(manifest(calls=calls), layers=(layer("a", *flow),))
    rows = [row("a", "conv__avx512_0", 1.0), row("relu", "relu", 3.0)]
    write_run(make_run(change(make_case(), layers=rows)), tmp_path / "run.json")
    page = render_view(Subject("m", made, {}), read_times(tmp_path / "run.json", made, ""))
    assert page.count("3 ms of 2 calls of this function together, 75.0% of the run") == 2


def test_onnx_is_not_needed_for_the_page_of_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "onnxruntime" in edges(read_graph(*sorting()))
    assert onnx.__name__ == "onnx"
