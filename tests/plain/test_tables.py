"""Tables for people fit the page: sentences go below, columns are left out, the rest is folded."""

import pytest

from nmcompile import tables
from nmcompile.cli.bench.table import print_profiles, print_run
from nmcompile.tables import spell_facts, spell_layers, spell_table
from tests.support.report_runs import make_run


@pytest.fixture(params=[80, 160])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    columns: int = request.param
    monkeypatch.setattr(tables, "page_width", lambda: columns)
    return columns


def layers(count: int, name: str) -> list[dict[str, object]]:
    reason = (
        "a window of stride 1 at this density: Winograd's method is expected to be faster with all "
        "weights than skipping half"
    )
    return [
        {
            **{"name": f"{name}{i}", "shape": [512, 512, 3, 3], "pattern": "unstructured"},
            **{"density": 0.5, "macs": 10**9, "kernel": "conv2d_f32_winograd__avx512"},
            **{"sparse": i == 0, "reason": "" if i == 0 else reason, "violations": 0},
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("name", ["conv", "/layer1/layer1.0/conv2/Conv"])
@pytest.mark.parametrize("checked", [False, True])
def test_layers_fit_the_page(name: str, checked: bool, width: int) -> None:
    lines = spell_layers(layers(9, name), checked=checked).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(line.strip() for line in lines)
    assert text.count("[1]") == 1 + 8  # the sentence, and the layers that it is about
    assert text.count("with all weights than skipping half") == 1


def test_runs_of_the_benchmark_fit_the_page(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("desk", ("net",), (1,), (1,))
    print_run(run)
    print_profiles(run)
    lines = capsys.readouterr().out.splitlines()
    tables_only = [line for line in lines if not line.startswith(("note:", "furthest", "roofs"))]
    assert max(map(len, tables_only)) <= width
    assert any(line.startswith("nmcompile") for line in lines)


def test_cells_of_a_run_stand_under_their_heads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "page_width", lambda: 250)
    print_run(make_run("desk", ("net",), (1,), (1,)))
    head, _, *rows = capsys.readouterr().out.splitlines()[1:]
    ours = next(row for row in rows if row.startswith("nmcompile") and "1x16@0.25" in row)
    assert ours[head.index("over ") :].startswith("onnxruntime")
    assert ours[head.index("difference") :].split()[0] == "3.0e-07"
    assert ours[head.index("noise") :].split()[0] == "quiet"


def test_a_word_longer_than_the_page_is_folded_and_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "page_width", lambda: 40)
    text = spell_table("", ("name", "value"), [("x" * 100, "7")], (1,))
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("x") == 100


def test_brackets_and_control_characters_in_names_are_shown() -> None:
    text = spell_table("", ("name", "why"), [("[red]a[/red]\x1b[31m", "")])
    assert "[red]a[/red]\\x1b[31m" in text


def test_long_facts_go_on_under_themselves(width: int) -> None:
    text = spell_facts({"inputs": ", ".join(["image float32 1x3x224x224"] * 9), "target": "avx512"})
    lines = text.splitlines()
    assert lines[0].startswith("inputs  image") and lines[-1] == "target  avx512"
    if width == 80:
        assert max(map(len, lines)) <= 80
        assert all(line.startswith(" " * 8) for line in lines[1:-1]) and len(lines) > 3
    else:
        assert len(lines) == 2  # in files and pipes a fact is a line
