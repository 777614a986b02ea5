"""What the report says of runs: baselines, intervals, break-evens, and which sections there are."""

import pytest

from nmcompile.bench.report import render_report, summary
from nmcompile.bench.report.comparisons import accuracy_panels, scaling_panels, site_panels
from nmcompile.bench.report.data import (
    Entry,
    family,
    find_entries,
    find_sites,
    pattern_name,
)
from nmcompile.bench.report.layers import layer_panels
from nmcompile.bench.report.panels import break_even_words, density_panels
from nmcompile.bench.report.plots import log_ticks
from nmcompile.bench.report.precisions import precisions_table
from nmcompile.bench.report.series import COLOURS, Palette, legend
from nmcompile.bench.results import Case, Run
from nmcompile.errors import InputError
from tests.plain.test_bench_results import make_case
from tests.plain.test_bench_results import make_run as run_of
from tests.support.report_runs import change, make_run


def entries_of(*runs: Run) -> list[Entry]:
    return find_entries(find_sites(runs))


def palette_of(entries: list[Entry]) -> Palette:
    return Palette(entries, list(dict.fromkeys(entry.site for entry in entries)))


def only(entries: list[Entry], engine: str = "nmcompile", pattern: str = "2:4") -> Entry:
    (found,) = (e for e in entries if (e.case.engine, e.case.pattern) == (engine, pattern))
    return found


def case(engine: str, ms: float, pattern: str = "", density: float = 1.0, **more: object) -> Case:
    changes = {"pattern": pattern, "density": density, **more}
    return change(make_case(engine, [ms] * 6), **changes)


def test_speed_up_is_over_the_fastest_peer() -> None:
    entries = entries_of(
        run_of(case("slow", 9.0), case("quick", 6.0), case("nmcompile", 2.0, "2:4", 0.5))
    )
    ours = only(entries)
    assert ours.baseline is not None and ours.baseline.engine == "quick"
    assert ours.ratio == pytest.approx(3.0)
    assert ours.interval == pytest.approx((3.0, 3.0))
    assert only(entries, "quick", "").ratio is None


def test_a_peer_counts_only_on_the_same_or_all_weights() -> None:
    other = case("sparse", 1.0, "1:16", 0.0625)
    same = case("sparse", 5.0, "2:4", 0.5)
    entries = entries_of(
        run_of(case("dense", 6.0), other, same, case("nmcompile", 2.0, "2:4", 0.5))
    )
    assert only(entries).ratio == 2.5


def test_a_peer_of_another_setting_is_no_baseline() -> None:
    peer = case("peer", 6.0, threads=2)
    assert only(entries_of(run_of(peer, case("nmcompile", 2.0, "2:4", 0.5)))).ratio is None


def test_without_peers_our_dense_pattern_stands_in() -> None:
    entries = entries_of(
        run_of(case("nmcompile", 8.0, "dense"), case("nmcompile", 2.0, "2:4", 0.5))
    )
    assert only(entries).ratio == pytest.approx(4.0)
    assert only(entries, pattern="dense").ratio is None
    assert "4.00x (4.00 to 4.00) the speed of our dense pattern" in summary.finding(entries)
    table = summary.matrix(entries, False)
    assert table is not None and table.caption == "Speed-up over our dense pattern"


def test_cases_that_took_no_turns_together_have_no_interval() -> None:
    peer = case("peer", 6.0, group="another")
    ours = only(entries_of(run_of(peer, case("nmcompile", 2.0, "2:4", 0.5))))
    assert (ours.ratio, ours.interval) == (3.0, None)


def test_few_rounds_have_no_interval() -> None:
    peer, ours = make_case("peer", [4.0] * 4), make_case("nmcompile", [2.0] * 9)
    found = only(entries_of(run_of(peer, ours)))
    assert (found.ratio, found.interval) == (2.0, None)


def test_a_failed_case_is_told_not_rated() -> None:
    failed = change(case("nmcompile", 1.0, "2:4", 0.5), samples_ms=[], error="no memory")
    entries = entries_of(run_of(case("peer", 2.0), failed))
    assert only(entries).ratio is None
    table = summary.problems(entries, False)
    assert table is not None
    assert [cell.text for cell in table.rows[0].cells][::5] == ["failed", "1"]
    assert table.rows[0].cells[-1].text == "no memory"
    assert len(summary.latencies(entries, False).rows) == 1


@pytest.mark.parametrize(
    ("pattern", "density", "kind", "name"),
    [
        ("dense", 1.0, "dense", "dense"),
        ("", 1.0, "dense", "as given"),
        ("", 0.4, "as given", "as given"),
        ("2:4", 0.5, "N:M", "2:4"),
        ("2:4@flat", 0.5, "N:M", "2:4, flat"),
        ("1x16@0.25", 0.25, "1x16", "1x16, 25% kept"),
        ("unstructured@0.1", 0.1, "unstructured", "unstructured, 10% kept"),
    ],
)
def test_patterns_have_families_and_names(
    pattern: str, density: float, kind: str, name: str
) -> None:
    found = case("nmcompile", 1.0, pattern, density)
    assert (family(found), pattern_name(found)) == (kind, name)


def test_sites_have_names_of_their_own() -> None:
    runs = [make_run("desk"), make_run("desk"), make_run("cloud")]
    named = [site.name for site in find_sites(runs)]
    assert named == ["desk, 2026-01-02T03:04", "desk, 2026-01-02T03:04 (2)", "cloud"]


def test_remote_devices_are_sites_of_their_own() -> None:
    remote = change(make_case(), device="icelake at 10.0.0.2")
    run = run_of(make_case(), remote)
    there = change(run.machine, cpu="another CPU")
    sites = find_sites([change(run, devices={remote.device: there})])
    assert [site.name for site in sites] == ["a CPU", "another CPU, icelake at 10.0.0.2"]
    assert [site.machine for site in sites] == [run.machine, there]


def test_break_even_is_interpolated_between_densities() -> None:
    cases = [case("peer", 1.0)]
    for density in (0.75, 0.25):  # time is 0.5 + density: even at 0.5
        cases.append(case("nmcompile", 0.5 + density, f"1x16@{density}", density))
    entries = entries_of(run_of(*cases))
    (panel,) = density_panels(entries, palette_of(entries), False)
    (mark,) = (guide for guide in panel.guides if guide.kind == "break-even")
    assert mark.at == pytest.approx(0.5)
    assert "Break-even density: 1x16 0.50." in panel.said
    assert "Best: 1x16, 25% kept, 1.33x. Worst: 1x16, 75% kept, 0.80x." in panel.said
    assert [row.cells[3].text for row in panel.table.rows] == ["0.80", "1.33"]


def test_break_evens_are_put_in_words() -> None:
    said = break_even_words({"a": 0.4, "b": 0.5, "c": None}, {"a": 0.5, "b": 0.5, "c": 0.5})
    assert said == (
        "Break-even density: a 0.40. Faster at every density measured: b. "
        "Slower at the lowest density measured: c."
    )


def test_scaling_tells_who_gains_most_and_least() -> None:
    cases = [
        change(case(engine, ms, threads=threads))
        for engine, times in {"peer": (8.0, 6.0), "nmcompile": (4.0, 2.0)}.items()
        for threads, ms in zip((1, 2), times, strict=True)
    ]
    entries = entries_of(run_of(*cases))
    (panel,) = scaling_panels(entries, palette_of(entries), False, "threads")
    assert panel.note == (
        "From 1 to 2 threads, images per second grow most with as given (2.00x) and least with "
        "peer (1.33x)."
    )
    assert scaling_panels(entries, palette_of(entries), False, "batch") == []


def test_accuracy_joins_what_nothing_beats() -> None:
    entries = entries_of(make_run(models=("net",), threads=(1,), batches=(1,)))
    (panel,) = accuracy_panels(entries, palette_of(entries), False)
    front = {point.said.partition(":")[0] for point in panel.points if point.label}
    assert "dense" in front and "onnxruntime" not in front
    assert "unstructured, 70% kept" not in front  # slower than dense, and less accurate


def test_sites_stand_side_by_side() -> None:
    entries = entries_of(
        make_run("desk", ("net",), (1,), (1,)), make_run("cloud", ("net",), (1,), (1,), speed=2.0)
    )
    (panel,) = site_panels(entries, palette_of(entries))
    first = panel.table.rows[0].cells
    assert first[0].text == "onnxruntime"
    assert float(first[3].text) == pytest.approx(2.0, rel=0.1)
    # The failed case of both has no row.
    assert "unstructured, 7% kept" not in {row.cells[0].text for row in panel.table.rows}


def test_layers_name_what_loses_most() -> None:
    entries = entries_of(make_run(models=("net",), threads=(1,), batches=(1,)))
    panels = layer_panels(entries, False)
    for panel, entry in zip(panels, [e for e in entries if e.case.layers], strict=True):
        worst = max(entry.case.layers, key=lambda layer: layer.lost_ms or 0.0)
        assert panel.note.startswith(f"Most time above the roof: 1 {worst.layer} (")
        # Layers without multiplications are in the table only.
        assert len(panel.points) == len(entry.case.layers) - 1 == len(panel.table.rows) - 1


def test_the_same_pattern_looks_the_same_everywhere() -> None:
    entries = entries_of(make_run("desk"), make_run("cloud"))
    looks = palette_of(entries)
    ours = {looks.of_case(entry.case) for entry in entries if entry.ours}
    assert len(ours) == len({(s.colour, s.shape) for s in ours}) == 8
    assert len(legend(looks.of_case(entry.case) for entry in entries)) == 10


def test_targets_of_one_pattern_look_different() -> None:
    cases = [case("nmcompile", 2.0, "2:4", 0.5, target=target) for target in ("avx512", "amx")]
    entries = entries_of(run_of(case("peer", 3.0), *cases))
    looks = [palette_of(entries).of_case(entry.case) for entry in entries if entry.ours]
    assert [look.name for look in looks] == ["2:4, avx512 float32", "2:4, amx float32"]
    assert looks[0].shape != looks[1].shape
    assert [look.dashed for look in looks] == [False, True]


def test_colours_are_in_the_style_sheet() -> None:
    page = render_report([make_run(models=("net",), threads=(1,), batches=(1,))])
    for name in [f"--s{place}" for place in range(COLOURS)]:
        assert f"{name}: light-dark(" in page


@pytest.fixture
def mixed() -> Run:
    """Both precisions of one model, each with peers of its own; only one pattern in both."""
    int8 = {"target": "avx512_vnni", "dtype": "int8"}
    return run_of(
        case("onnxruntime", 8.0),
        case("openvino-f32", 9.0),
        case("openvino-int8", 3.0, dtype="int8"),
        case("nmcompile", 4.0, "2:4", 0.5),
        case("nmcompile", 3.0, "1:4", 0.25),
        case("nmcompile", 1.5, "2:4", 0.5, **int8),
        case("nmcompile", 1.0, "1:16", 0.0625, **int8),
    )


def test_precisions_stand_side_by_side(mixed: Run) -> None:
    entries = entries_of(mixed)
    table = precisions_table(entries, False)
    assert table is not None and table.caption == "float32 and int8 side by side"
    assert [[cell.text for cell in row.cells[1:]] for row in table.rows] == [
        "2:4 onnxruntime 8.00 4.00 2.00 openvino-int8 3.00 1.50 2.00 2.67".split(),
        ["1:4", "onnxruntime", "8.00", "3.00", "2.67", "", "", "", "", ""],
        ["1:16", "", "", "", "", "openvino-int8", "3.00", "1.00", "3.00", ""],
    ]
    assert precisions_table(entries_of(run_of(*mixed.cases[:5])), False) is None


def test_each_precision_has_a_row_and_a_plot_of_its_own(mixed: Run) -> None:
    entries = entries_of(mixed)
    table = summary.matrix(entries, False)
    assert table is not None
    assert [column.name for column in table.columns][1:5] == ["precision", "2:4", "1:4", "1:16"]
    assert [[cell.text for cell in row.cells[1:]] for row in table.rows] == [
        ["float32", "2.00", "2.67", "", "onnxruntime", "8.00"],
        ["int8", "2.00", "", "3.00", "openvino-int8", "3.00"],
    ]
    panels = density_panels(entries, palette_of(entries), False)
    assert [panel.tags["precision"] for panel in panels] == ["float32", "int8"]
    assert panels[1].said.startswith("Speed-up over openvino-int8 ")
    names = [palette_of(entries).of_case(entry.case).name for entry in entries if entry.ours]
    assert set(names) == {"2:4, float32", "1:4, float32", "2:4, int8", "1:16, int8"}
    assert "2 sparse cases in float32" in summary.whole(entries)
    assert "2 sparse cases in int8" in summary.whole(entries)
    page = render_report([mixed])
    assert '<select data-tag="precision">' in page and '<section id="precisions">' in page


@pytest.mark.parametrize("low", [1e-3, 0.7, 1.0, 93.0, 4e5])
@pytest.mark.parametrize("times", [1.02, 1.3, 2.0, 9.0, 500.0, 1e7])
def test_axes_have_a_few_ticks_inside(low: float, times: float) -> None:
    ticks = log_ticks(low, low * times)
    assert 3 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0] and ticks[-1] <= low * times * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "there", "missing"),
    [
        ({}, ["density", "accuracy", "layers"], ["threads", "batch", "sites"]),
        ({"threads": (1, 2)}, ["threads"], ["batch"]),
        ({"batches": (1, 8)}, ["batch"], ["threads"]),
        ({"peers": ()}, ["density"], ["sites"]),
    ],
)
def test_sections_are_there_where_data_supports_them(
    changes: dict[str, tuple[int, ...]], there: list[str], missing: list[str]
) -> None:
    settings = {"models": ("net",), "threads": (1,), "batches": (1,)}
    page = render_report([make_run("desk", **(settings | changes))])  # type: ignore[arg-type]
    for name in there:
        assert f'<section id="{name}"' in page
        assert f'<a href="#{name}">' in page
    for name in missing:
        assert f'id="{name}"' not in page


def test_a_single_case_makes_a_page() -> None:
    page = render_report([run_of(make_case())], title="a <title>")
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert "there is no speed-up to tell" in page


def test_a_run_without_cases_makes_none() -> None:
    with pytest.raises(InputError, match="hold no cases: expected at least one"):
        render_report([run_of()])
