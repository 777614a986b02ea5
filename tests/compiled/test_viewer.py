"""`nmc inspect --html` and `--layer`: pages of models and artifacts, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import nmcompile
from nmcompile.bench.results import Artifact, LayerRow, write_run
from nmcompile.cli import app
from nmcompile.runtime import read_artifact
from nmcompile.viewer.graph import LoweredGraph, read_graph
from nmcompile.viewer.outline import outline
from tests.compiled.test_batch_split import Residual, tiny_caches
from tests.plain.test_bench_results import make_case, make_run
from tests.support.mixed_models import counting, reader
from tests.support.report_runs import change
from tests.support.seed_modules import export_onnx
from tests.support.tiny_models import example, tiny_net

__all__ = ["tiny_caches"]


def nmc(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.stderr)
    return done


def rows(page: Path) -> list[str]:
    """The names of the rows of a page."""
    found: list[str] = re.findall(
        r'<tr class="node".*?<button[^>]*>(.*?)</button>', page.read_text(), re.DOTALL
    )
    return found


def test_an_artifact_becomes_a_page(sparse_artifact: Path, tmp_path: Path) -> None:
    done = nmc(sparse_artifact, "--html", tmp_path / "out.html")
    assert done.stdout.startswith(f"{tmp_path / 'out.html'}: 4 layers, 0 maps of weights, ")
    assert rows(tmp_path / "out.html") == [
        "x", "stem", "wide", "narrow", "global_average_1", "head", "y",
    ]  # fmt: skip
    text = (tmp_path / "out.html").read_text()
    assert "An artifact keeps weights as its kernels read them." in text
    assert "the weight is dense (density 1.00)" in text


def test_a_model_has_the_rows_that_its_artifact_has(
    sparse_onnx: Path, sparse_artifact: Path, tmp_path: Path
) -> None:
    done = nmc(sparse_onnx, "--html", tmp_path / "model.html", "--json")
    written = json.loads(done.stdout)
    assert written["maps"] == ["wide", "narrow"] and written["layers"] == 4
    nmc(sparse_artifact, "--html", tmp_path / "file.html")
    assert rows(tmp_path / "model.html") == rows(tmp_path / "file.html")


def nearest(reads: dict[Any, list[Any]], wanted: set[Any], node: Any) -> set[Any]:
    """The layers and inputs whose results reach a node through what is neither."""
    found = set()
    for read in reads[node]:
        found |= {read} if read in wanted else nearest(reads, wanted, read)
    return found


def by_fx(model: nn.Module) -> dict[str, set[str]]:
    """For each layer the layers and inputs behind which torch.fx finds it."""
    graph = torch.fx.symbolic_trace(model).graph
    layers = [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and isinstance(model.get_submodule(node.target), nn.Conv2d | nn.Linear)
    ]
    wanted = {*layers, *(node for node in graph.nodes if node.op == "placeholder")}
    reads = {node: list(node.all_input_nodes) for node in graph.nodes}
    return {
        node.target: {str(read.target) for read in nearest(reads, wanted, node)} for node in layers
    }


def by_graph(graph: LoweredGraph) -> dict[str, set[str]]:
    """The same of the lowered graph."""
    reads = {place: list(node.reads) for place, node in enumerate(graph.nodes)}
    inputs = [p for p, node in enumerate(graph.nodes) if node.kind == "end" and not node.reads]
    layers = [p for p, node in enumerate(graph.nodes) if node.facts]
    return {
        graph.nodes[p].name: {graph.nodes[r].name for r in nearest(reads, {*inputs, *layers}, p)}
        for p in layers
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, set[str]]:
    """What the layers of `tiny_net` read. The sum behind `narrow` is done by its kernel."""
    found = by_fx(tiny_net())
    return found | {"narrow": {"wide", "stem"}, "head": {"narrow"}}


def test_layers_read_what_they_read_in_the_model(
    sparse_artifact: Path, expected: dict[str, set[str]]
) -> None:
    artifact = read_artifact(sparse_artifact)
    assert by_graph(read_graph(artifact.manifest, artifact.parts)) == expected


@pytest.mark.parametrize("target", ["avx512_amx", "sm_80"])
def test_a_model_is_looked_at_for_other_targets(
    target: str, sparse_onnx: Path, expected: dict[str, set[str]]
) -> None:
    lowered = outline(str(sparse_onnx), target=target)
    graph = read_graph(lowered.manifest, lowered.contents)
    assert graph.joined and by_graph(graph) == expected


def test_early_layers_of_a_batch_read_what_they_read_in_the_model() -> None:
    proto = export_onnx(Residual().eval(), example((4, 3, 18, 18)))
    lowered = outline(proto)
    graph = read_graph(lowered.manifest, {})
    repeated = {node.name for node in graph.nodes if node.calls > 1}
    assert {"stem", "first.0"} <= repeated  # else nothing was split
    expected = by_fx(Residual())
    for block in ("0", "1"):  # the sum is the second convolution's own
        expected[f"second.{block}"] |= expected[f"first.{block}"]
    expected["first.1"], expected["head"] = {"second.0"}, {"second.1"}
    expected["second.1"] = {"first.1", "second.0"}
    assert graph.joined and by_graph(graph) == expected


def test_parts_stand_under_headings(tmp_path: Path) -> None:
    onnx.save(reader(), tmp_path / "m.onnx")
    nmc(tmp_path / "m.onnx", "--html", tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    for number, runs in enumerate(("nmcompile", "onnxruntime", "nmcompile"), 1):
        assert f"Part {number} of 3: {runs}" in text
    assert "<dt>part 2</dt><dd>LSTM (node y): expected an operator" in text
    assert rows(tmp_path / "out.html") == [
        "x", "conv1", "mean", "transpose", "y", "transpose", "fc", "softmax", "text",
    ]  # fmt: skip


def test_operators_of_parts_are_read_from_artifacts(tmp_path: Path) -> None:
    nmcompile.compile(counting(), output=tmp_path / "m.nmc")
    nmc(tmp_path / "m.nmc", "--html", tmp_path / "out.html")
    # `a` is an output that onnxruntime's part reads, too: it stands behind what makes it.
    names = rows(tmp_path / "out.html")
    assert names[:3] == ["x", "conv1", "a"] and names[-1] == "places"


def test_times_of_a_bench_stand_beside_the_rows(sparse_artifact: Path, tmp_path: Path) -> None:
    artifact = read_artifact(sparse_artifact)
    taken = [
        LayerRow(
            layer=call.layer, symbol=call.symbol, pattern=None, density=None, ms=1.0 + place,
            nonzero_gflops=None, dense_equivalent_gflops=None, roof=None, roof_share=None,
            lost_ms=None,
        )
        for place, call in enumerate(artifact.manifest.calls)
    ]  # fmt: skip
    facts = Artifact(digest=artifact.digest, nbytes=1, dense_nbytes=1, compile_s=1.0, load_ms=1.0)
    write_run(make_run(change(make_case(), artifact=facts, layers=taken)), tmp_path / "run.json")
    done = nmc(
        *(sparse_artifact, "--html", tmp_path / "out.html", "--json"),
        *("--profile", tmp_path / "run.json"),
    )
    assert json.loads(done.stdout)["profile"] == "1 thread, batch 1, on a CPU, 2026-01-01"
    text = (tmp_path / "out.html").read_text()
    for place in range(len(taken)):
        assert f"{1.0 + place:.3f}" in text


def test_a_layer_is_drawn_in_characters(sparse_onnx: Path) -> None:
    lines = nmc(sparse_onnx, "--layer", "narrow").stdout.splitlines()
    assert lines[0] == "narrow: 2:4, 50.0% of 256 weights kept"
    drawing = [line.strip() for line in lines if set(line.strip()) == {"#", ".", "|"}]
    assert len(drawing) == 16
    assert all(group.count("#") == 2 for line in drawing for group in line.split("|"))


def test_programs_get_every_weight(sparse_onnx: Path) -> None:
    found = json.loads(nmc(sparse_onnx, "--layer", "w*", "--json").stdout)["layers"]
    assert [(layer["name"], layer["pattern"], layer["order"]) for layer in found] == [
        ("wide", "2:4", "hwi")
    ]
    oihw = tiny_net("2:4").wide.weight.detach().numpy()  # folding keeps its zeros
    mask = np.array([[cell == "#" for cell in row] for row in found[0]["rows"]])
    np.testing.assert_array_equal(mask, oihw.transpose(0, 2, 3, 1).reshape(16, -1) != 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--profile", "run.json"), "expected --html with it"),
        (("--html", "out.html", "--spatial"), "expected neither --pattern nor --spatial"),
        (("--layer", "wide", "--pattern", "2:4"), "expected neither --pattern nor --spatial"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    options: tuple[str, ...], said: str, sparse_onnx: Path
) -> None:
    assert said in " ".join(nmc(sparse_onnx, *options, code=2).stderr.replace("│", "").split())


def test_what_cannot_be_shown_is_refused_by_name(
    sparse_onnx: Path, sparse_artifact: Path, tmp_path: Path
) -> None:
    page = tmp_path / "out.html"
    refusals: list[tuple[tuple[str | Path, ...], str]] = [
        ((sparse_onnx, "--layer", "wid"), "no layer is called 'wid': expected .* such as wide"),
        ((sparse_artifact, "--layer", "wide"), "layer wide: .* keeps weights as its kernels read"),
        ((sparse_onnx, "--html", sparse_onnx), "is to be read, and would be overwritten"),
        ((sparse_onnx, "--html", sparse_artifact / "out.html"), "cannot write"),
        ((sparse_onnx, "--html", page, "--profile", tmp_path / "no.json"), "cannot read .*no.json"),
        ((sparse_artifact, "--html", page, "--layer", "wide"), "nmc inspect MODEL --layer wide"),
    ]
    for options, said in refusals:
        error = nmc(*options, code=1).stderr
        assert re.search(said, error), error
        assert len(error.splitlines()) == 1
    assert not page.exists()
