"""README.md's table and pictures, from a made-up result."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import density, report
from benchmarks.report import markdown, results_table, update_readme

Document = dict[str, Any]


def row(engine: str, pattern: str, ms: float, **more: int) -> Document:
    sizes = {"artifact_bytes": None, "dense_bytes": None, **more}
    rest = {"error": 1e-7, "compile_s": None, "load_ms": None}
    return {
        **{"model": "resnet50", "threads": 1, "engine": engine, "pattern": pattern},
        **{"median_ms": ms, "min_ms": ms, "ratio": 40 / ms, **sizes, **rest},
    }


@pytest.fixture
def result() -> Document:
    versions = {"onnxruntime": "1.32", "openvino": "2026.4"}
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "caches": {"L2": "1M"}, "versions": versions},
        "settings": {"rounds": 8, "batch": 1, "size": 224, "deepsparse": None},
        "rows": [
            row("onnxruntime", "", 50),
            row("openvino", "", 40),
            row("nmcompile", "dense", 41, artifact_bytes=101, dense_bytes=100),
            row("nmcompile", "1x16@0.25", 16, artifact_bytes=32, dense_bytes=100),
        ],
    }


@pytest.fixture
def with_deepsparse(result: Document) -> Document:
    result["settings"]["deepsparse"] = "1.8.0"
    result["rows"] += [row("deepsparse", "dense", 42), row("deepsparse", "1x16@0.25", 44.25)]
    return result


@pytest.fixture
def densities() -> density.Result:
    layer = density.Layer("a", 1, "dense", 1.0, {"1x16": [1.5, 0.5]})
    return density.Result({"cpu": "a CPU"}, "resnet50", 0.9, 1, [1.0, 0.5], ["1x16"], [layer])


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_table_without_deepsparse_has_no_column_for_it(result: Document) -> None:
    text = markdown(result)
    assert "DeepSparse" not in text
    assert cells(text)[2:] == [
        ["ResNet-50", "1", "50.0 ms", "40.0 ms", "dense", "41.0 ms", "**0.98x**", "101%"],
        ["", "", "", "", "1x16, 25% kept", "16.0 ms", "**2.50x**", "32%"],
    ]


def test_result_from_before_deepsparse_is_read(result: Document) -> None:
    del result["settings"]["deepsparse"]
    assert "DeepSparse" not in markdown(result)


def test_deepsparse_stands_beside_the_pattern_it_ran(with_deepsparse: Document) -> None:
    text = markdown(with_deepsparse)
    head, _, dense, sparse = cells(text)
    assert "DeepSparse 1.8.0 (discontinued)" in text
    assert (head[5], dense[5], sparse[5]) == ("DeepSparse", "42.0 ms", "44.2 ms")
    # Still over the faster dense peer.
    assert sparse[7] == "**2.50x**"
    assert len({len(line) for line in cells(text)}) == 1
    assert results_table(with_deepsparse).row_count == 6


def test_break_evens_follow_the_table(result: Document, densities: density.Result) -> None:
    text = markdown(result, densities)
    assert "(benchmarks/results/density.png)" in text
    assert "Break-even density: 1x16: 0.75." in text
    assert "Measured on" not in text
    densities = density.Result(**{**vars(densities), "machine": {"cpu": "another CPU"}})
    assert markdown(result, densities).endswith("Measured on another CPU.")


@pytest.mark.parametrize("measured", [True, False])
def test_readme_is_rewritten_between_the_marks(
    measured: bool,
    result: Document,
    densities: density.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "models.json")
    monkeypatch.setattr(density, "RESULTS", tmp_path / "density.json")
    (tmp_path / "models.json").write_text(json.dumps(result))
    if measured:
        density.write_result(densities, tmp_path / "density.json")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    update_readme(tmp_path / "models.json", readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert ("Break-even density" in text) == measured
    assert (tmp_path / "speedup.png").exists()
    assert (tmp_path / "density.png").exists() == measured


def test_missing_marks_are_reported(
    result: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "models.json")
    (tmp_path / "models.json").write_text(json.dumps(result))
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="expected the marks"):
        update_readme(tmp_path / "models.json", tmp_path / "README.md")
