"""The file of a benchmark run: it survives writing and reading, and damage is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from nmcompile.bench.results import Case, Model, Run, Settings, read_run, write_run
from nmcompile.errors import InputError
from nmcompile.machine.describe import Machine


def make_case(engine: str = "nmcompile", samples: list[float] | None = None) -> Case:
    return Case(
        group="net,1,1",
        model="net",
        engine=engine,
        engine_version="1",
        pattern="2:4",
        density=0.5,
        target="avx512",
        dtype="float32",
        threads=1,
        batch=1,
        device="local",
        samples_ms=[1.0, 3.0, 2.0] if samples is None else samples,
        noise="quiet",
        noise_reason="",
        accuracy=None,
        artifact=None,
        layers=[],
        error=None,
    )


def make_run(*cases: Case) -> Run:
    return Run(
        label="",
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
        complete=True,
        machine=Machine(
            cpu="a CPU", family_model="1/1", cores=2, features=["avx512f"], caches={"L1d": "32K"},
            memory_bytes=1 << 30, governor=None, gpus=[], system="Linux", python="3.11",
        ),
        versions={"nmcompile": "0"},
        settings=Settings(rounds=3, warmup=1, pinned=[], budget_s=None, memory_bytes=None),
        roofs=None,
        models=[Model(name="net", source="net.onnx", digest="00", macs=10)],
        cases=list(cases),
    )  # fmt: skip


def test_run_survives_its_file(tmp_path: Path) -> None:
    run = make_run(make_case(), make_case("onnxruntime"))
    write_run(run, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == run


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_run(make_run(make_case()), path)
    document = json.loads(path.read_text())
    del document["settings"]["calibration"]
    path.write_text(json.dumps(document | {"version": 1}))
    assert read_run(path).settings.calibration == ""


def test_median_is_of_the_samples() -> None:
    assert make_case().median_ms == 2.0
    assert make_case(samples=[]).median_ms is None


def damaged(document: dict[str, Any], fault: str) -> dict[str, Any]:
    case = document["cases"][0]
    if fault == "format":
        document["format"] = "other"
    elif fault == "version":
        document["version"] = 3
    elif fault == "missing":
        del case["threads"]
    elif fault == "unknown":
        case["speed"] = 3
    elif fault == "type":
        case["samples_ms"][1] = "fast"
    elif fault == "model":
        case["model"] = "nett"
    return document


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("format", "expected format 'nmcompile-bench', found 'other'"),
        ("version", "has version 3, this nmcompile reads version 2"),
        ("missing", "missing required field `threads` - at `$.cases[0]`"),
        ("unknown", "unknown field `speed` - at `$.cases[0]`"),
        ("type", "$.cases[0].samples_ms[1]"),
        ("model", "names the model 'nett', expected one of net"),
    ],
)
def test_damage_is_named(tmp_path: Path, fault: str, said: str) -> None:
    path = tmp_path / "run.json"
    write_run(make_run(make_case()), path)
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), fault)))
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert said in str(caught.value) and "run.json" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"\x00"])
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        read_run(path)
