"""The tables and pictures of README.md and docs/performance.md, from a made-up result."""

from pathlib import Path

import pytest

from benchmarks import density, report, zoo
from benchmarks.models import MODELS
from benchmarks.report import glance, markdown, update
from nmcompile.bench.results import Artifact, Case, Run, write_run
from tests.plain.test_bench_results import make_case, make_run
from tests.support.report_runs import change


def case(engine: str, pattern: str, ms: float, density: float = 1.0, size: int = 0) -> Case:
    facts = Artifact(digest="", nbytes=size, dense_nbytes=100, compile_s=1.0, load_ms=1.0)
    return change(
        make_case(engine, [ms] * 8),
        pattern=pattern,
        density=density,
        artifact=facts if size else None,
        model="resnet50",
    )


@pytest.fixture
def run() -> Run:
    made = make_run(
        case("onnxruntime", "dense", 50),
        case("openvino-f32", "dense", 40),
        case("nmcompile", "dense", 41, size=101),
        case("nmcompile", "1x16@0.25", 16, 0.25, size=32),
    )
    models = [change(made.models[0], name="resnet50")]
    versions = {"onnxruntime": "1.32", "openvino-f32": "2026.4", "deepsparse": "1.8.0"}
    return change(made, models=models, versions=versions)


@pytest.fixture
def with_int8(run: Run) -> Run:
    more = [
        case("openvino-int8", "dense", 12),
        case("onnxruntime-int8", "dense", 13),
        case("nmcompile", "dense", 10, size=30),
        case("nmcompile", "1x16@0.25", 4, 0.25, size=9),
    ]
    settings = change(run.settings, calibration="random inputs")
    int8 = [change(c, dtype="int8", target="avx512_vnni" * (c.engine == "nmcompile")) for c in more]
    return change(run, cases=[*run.cases, *int8], settings=settings)


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


def test_a_precision_that_was_not_measured_has_no_table(run: Run) -> None:
    text = markdown(run)
    assert "DeepSparse" not in text and "int8" not in text and "2 threads" not in text
    head, _, *rows = cells(text)
    assert head[2:] == ["onnxruntime", "OpenVINO", "nmcompile", "speed-up", "file"]
    assert rows == [
        ["ResNet-50", "dense", "50.0 ms", "40.0 ms", "41.0 ms", "**0.98x**", "101%"],
        ["", "1x16, 25% kept", "", "", "16.0 ms", "**2.50x**", "32%"],
    ]


def test_precisions_have_tables_of_their_own(with_int8: Run) -> None:
    text = markdown(with_int8)
    assert "quantised on random inputs." in text
    head, _, dense, sparse = cells(text[text.index("### int8, 1 thread") :])
    assert head[4:] == ["nmcompile", "speed-up", "file", "over float32"]
    assert dense[2:] == ["13.0 ms", "12.0 ms", "10.0 ms", "**1.20x**", "30%", "4.10x"]
    assert sparse[1:] == ["1x16, 25% kept", "", "", "4.0 ms", "**3.00x**", "9%", "4.00x"]


def test_more_threads_have_a_table_and_a_sentence(run: Run) -> None:
    halved = [
        change(c, threads=2, group="two", samples_ms=[ms / 2 for ms in c.samples_ms])
        for c in run.cases
    ]
    text = markdown(change(run, cases=[*run.cases, *halved]))
    assert "On 2 threads nmcompile is 2.00x as fast in float32 (geometric means)." in text
    assert cells(text[text.index("### float32, 2 threads") :])[3][4] == "8.0 ms"


def test_deepsparse_has_a_column_and_is_no_measure(run: Run) -> None:
    more = [case("deepsparse", "dense", 12), case("deepsparse", "1x16@0.25", 20, 0.25)]
    text = markdown(change(run, cases=[*run.cases, *more]))
    assert "DeepSparse 1.8.0 (discontinued)" in text
    assert "in float32: nmcompile is 0.29x to 1.25x as fast." in text
    # Still over the fastest engine whose time does not depend on the weights.
    assert cells(text)[3][4:7] == ["20.0 ms", "16.0 ms", "**2.50x**"]


def test_the_glance_has_a_column_per_model_and_precision(run: Run, with_int8: Run) -> None:
    assert cells(glance(run))[2:] == [["dense", "**0.98x**"], ["1x16, 25% kept", "**2.50x**"]]
    head, _, dense, sparse = cells(glance(with_int8))
    assert head == ["weights", "ResNet-50 float32", "ResNet-50 int8"]
    assert dense == ["dense", "**0.98x**", "**1.20x**"]
    assert sparse[1:] == ["**2.50x**", "**3.00x**"]
    assert "the faster of onnxruntime 1.32 and OpenVINO 2026.4 with all weights" in glance(run)


def test_a_busy_machine_is_marked(run: Run) -> None:
    busy = change(run.cases[3], noise="busy")
    text = markdown(change(run, cases=[*run.cases[:3], busy]))
    assert "16.0 ms†" in text and "† The machine was busy" in text
    assert "†" not in markdown(run)


def test_break_evens_follow_the_table(run: Run, densities: density.Result) -> None:
    text = markdown(run, [densities])
    assert "(../benchmarks/results/density.png)" in text
    assert "Break-even density: 1x16: 0.75." in text
    assert "Measured on" not in text
    densities = density.Result(**{**vars(densities), "machine": {"cpu": "another CPU"}})
    assert markdown(run, [densities]).endswith("Measured on another CPU.")


@pytest.mark.parametrize("measured", [True, False])
def test_both_pages_are_rewritten_between_the_marks(
    measured: bool,
    run: Run,
    densities: density.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(density, "FOLDER", tmp_path)
    write_run(run, tmp_path / "models.json")
    if measured:
        density.write_result(densities, tmp_path / "density.json")
    pages = [tmp_path / "README.md", tmp_path / "performance.md"]
    for page in pages:
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    update(tmp_path / "models.json", *pages)
    readme, performance = [page.read_text() for page in pages]
    for text in (readme, performance):
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "**2.50x**" in readme and "Break-even density" not in readme
    assert ("Break-even density" in performance) == measured
    assert (tmp_path / "speedup.png").exists()
    assert (tmp_path / "density.png").exists() == measured


def test_missing_marks_are_reported_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    write_run(run, tmp_path / "models.json")
    pages = [tmp_path / "README.md", tmp_path / "performance.md"]
    marked = f"{report.BEGIN}\nold\n{report.END}"
    for page, text in zip(pages, (marked, "no marks"), strict=True):
        page.write_text(text)
    with pytest.raises(ValueError, match=r"performance\.md: expected the marks"):
        update(tmp_path / "models.json", *pages)
    assert pages[0].read_text() == marked


def test_every_bench_model_has_a_factory() -> None:
    for name in MODELS:
        assert getattr(zoo, name)().training is False
