"""What bench_models is told: models, patterns and engines."""

from pathlib import Path

import pytest

from benchmarks.bench_models import PATTERNS, parse_arguments
from benchmarks.models import MODELS
from nmcompile.sparsity import parse_pattern


def test_every_model_has_patterns_of_its_own() -> None:
    assert list(PATTERNS) == list(MODELS)
    for text in PATTERNS.values():
        for spec in text.split(","):
            parse_pattern(spec.partition("@")[0])
    assert parse_arguments([]).patterns is None
    assert parse_arguments(["--patterns", "dense,2:4"]).patterns == ["dense", "2:4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patterns", "2:4,3by5"], "'3by5'"),
        (["--models", "resnet51"], "'resnet51': expected resnet18"),
        (["--threads", "1,two"], "'two'"),
        (["--deepsparse"], "run `make deepsparse`"),
    ],
)
def test_wrong_arguments_are_named(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NMC_DEEPSPARSE", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        parse_arguments(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
