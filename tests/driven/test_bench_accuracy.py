"""The accuracy benchmark and the tutorial, with budgets that only show that they run."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import accuracy_digits, tutorial
from benchmarks.accuracy import Row, beside_authors, integers, orderings
from benchmarks.accuracy_digits import recipes
from benchmarks.networks import VIT
from nmcompile.precision import INT8_TARGET
from nmcompile.runtime import cpu
from nmcompile.targets import find_target

pytestmark = pytest.mark.isa("avx512f")


def row(method: str, *accuracies: float) -> Row:
    int8 = [share - 0.01 for share in accuracies]
    return Row(method, "1:16", 1 / 16, accuracies, int8, 0.1, 1000, 1.0, 1e-6)


def test_orderings_say_what_the_means_show() -> None:
    rows = [
        row("ASP, one-shot", 0.90, 0.91),
        row("SR-STE", 0.95, 0.96),
        row("SpRe over SR-STE", 0.955, 0.955),
        row("LBC", 0.90, 0.91),
    ]
    found = list(orderings(rows))
    assert len(found) == 3
    assert "SR-STE against ASP, one-shot" in found[0] and ": reproduced (+5.00 points" in found[0]
    assert "LBC against SR-STE" in found[1] and ": not reproduced (-5.00 points" in found[1]
    assert "level within one standard error" in found[2]


def test_ours_is_held_against_the_authors_code() -> None:
    rows = [
        row("LBC", 0.90, 0.91),
        row("SR-STE, the authors' code", 0.95, 0.96),
        row("SR-STE", 0.951, 0.961),
        row("LBC, the authors' code", 0.95, 0.96),
        row("SUBP", 0.9, 0.9),
    ]
    worse, level = beside_authors(rows)
    assert worse.startswith("LBC, 1:16 with 6.2% kept: ours is worse (-5.00 points")
    assert level.startswith("SR-STE, 1:16 with 6.2% kept: level within one standard error")


def test_what_integers_lose_is_said_for_all_and_for_the_worst() -> None:
    average, worst = integers([row("ASP, one-shot", 0.90, 0.92), row("LBC", 0.5)])
    assert "int8 loses 1.00 points" in average
    assert "loses most: 1.00 points" in worst


def test_every_method_is_measured_at_every_sparsity() -> None:
    made = [(recipe.title, recipe.pattern, recipe.density) for recipe in recipes()]
    assert len(made) == len(set(made)) == 1 + 6 * 4 + 2 * 3


def test_a_transformer_is_trained_and_compiled() -> None:
    made = {recipe.name: recipe for recipe in recipes(VIT)}
    assert set(made) == {"dense", *(f"{t} {p}" for t in VIT.titles[1:] for p in VIT.patterns)}
    model, _ = accuracy_digits.train_one(made["SR-STE 2:4"], 0, 1, VIT)
    found = accuracy_digits.compile_one(model)
    assert found["same"] == 1.0 and found["error"] < 1e-4


@pytest.mark.long
def test_benchmark_writes_table_page_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [recipe for recipe in recipes() if recipe.pattern in ("dense", "1:4")]
    few += recipes()[-1:]
    monkeypatch.setattr(accuracy_digits, "recipes", lambda network: few)
    monkeypatch.setattr(accuracy_digits, "ProcessPoolExecutor", _Here)
    output = tmp_path / "accuracy.json"
    words = ["--seeds", "2", "--epochs", "2", "--output", str(output)]
    assert accuracy_digits.main(words) == 0
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == len(few)
    assert all(row["same"] == 1.0 and row["error"] < 1e-4 for row in rows)
    assert all(len(row["int8"]) == 2 for row in rows)
    if set(find_target(INT8_TARGET).cpu_features) <= set(cpu.host()[1]):
        assert all(row["int8_same"] > 0.98 for row in rows)
    assert "The papers' orderings" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


class _Here:
    """An executor that works in this process, where the recipes are replaced."""

    def __init__(self, workers: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> object:
        return self.pool

    def __exit__(self, *exc: object) -> None:
        self.pool.shutdown()


@pytest.mark.long
def test_tutorial_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tutorial", "--epochs", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert tutorial.main() == 0
    said = capsys.readouterr().out
    for step in ("1. dense", "2. SR-STE", "3. SpRe: folded", "4. SpRe", "5. SpRe: compiled"):
        assert step in said
