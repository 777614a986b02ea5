"""Tuning on other machines: nothing is lost, and the database is as if it were done there."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import nmcompile
from nmcompile.cli import app
from nmcompile.devices import Address, DeviceServer, Fleet
from nmcompile.devices.tracker import LOOPBACK
from nmcompile.devices.worker import answer
from nmcompile.errors import InputError
from nmcompile.runtime import cpu
from nmcompile.runtime.native import available_threads
from nmcompile.targets import find_target
from nmcompile.tuning import tuner
from nmcompile.tuning.request import Tuning
from nmcompile.tuning.setup import open_tuning
from tests.support.device_handlers import kill
from tests.support.manifests import FEATURES

pytestmark = pytest.mark.isa("avx512f")

VECTORS = ", ".join(name for name in FEATURES if "avx" in name)
LAYERS = 4  # of the model, no two alike, the classifier too
Progress = Callable[[str, int, int], None]


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "CANDIDATES", 2)
    monkeypatch.setattr(tuner, "OTHERS", 1)


@pytest.fixture(scope="module")
def fleet(tracker: Address) -> Iterator[Fleet]:
    with (
        DeviceServer("tune", port=0, tracker=tracker),
        DeviceServer("tune", port=0, tracker=tracker),
    ):
        yield Fleet(tracker, "tune")


def entries_of(path: Path) -> dict[str, Any]:
    """What the file has for this machine's CPU, which is that of the devices."""
    cpus = json.loads(path.read_text())["cpus"]
    assert list(cpus) == [cpu.model()]
    entries: dict[str, Any] = cpus[cpu.model()]
    return entries


def nmc_compile(model: Path, *words: object) -> Result:
    command = ["compile", str(model), "-o", str(model.parent / "tuned.nmc"), *map(str, words)]
    return CliRunner().invoke(app, command)


def test_devices_fill_the_database_as_this_machine_does(
    fleet: Fleet, sparse_onnx: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    tune_there = ("--tune", "--tracker", fleet.tracker, "--key", fleet.key, "--tuning-db", there)
    done = nmc_compile(sparse_onnx, *tune_there)
    assert done.exit_code == 0, done.output
    assert "measured best" in done.output and "tuned layers:" in done.output
    assert nmc_compile(sparse_onnx, "--tune", "--tuning-db", here).exit_code == 0
    found = entries_of(there)
    assert len(found) == LAYERS and found.keys() == entries_of(here).keys()
    assert all(0 < entry["ms"] <= entry["default_ms"] for entry in found.values())
    written = there.read_bytes()
    for words in (tune_there, ("--tune", "--tuning-db", there), ("--tuning-db", there)):
        shown = nmc_compile(sparse_onnx, *words, "--json")
        assert shown.exit_code == 0, shown.output
        used = json.loads(shown.stdout)["tuning"]
        assert sorted(layer["ms"] for layer in used) == sorted(e["ms"] for e in found.values())
    assert there.read_bytes() == written


def test_a_device_that_dies_costs_no_layer(
    tracker: Address, sparse_onnx: Path, tmp_path: Path
) -> None:
    path, handler = tmp_path / "tuning.json", "tests.support.device_handlers:never_measure"
    with DeviceServer("mortal", port=0, tracker=tracker, handler=handler) as doomed:
        with DeviceServer("mortal", port=0, tracker=tracker) as other:

            def kill_at_work(stage: str, done: int = 0, total: int = 0) -> None:
                if stage.startswith("measuring") and done == 1:
                    kill(doomed)

            result = nmcompile.compile(
                sparse_onnx,
                output=tmp_path / "m.nmc",
                tuning=nmcompile.Tuning(path, measure=True, on=Fleet(tracker, "mortal")),
                progress=kill_at_work,
            )
    assert len(entries_of(path)) == len(result.tuning) == LAYERS
    (note,) = (note for note in result.report.notes if "failed" in note)
    assert f"an attempt on {LOOPBACK}:{doomed.port} failed: the connection broke" in note
    assert f"{LOOPBACK}:{other.port}" not in note
    assert any(layer.layer in note for layer in result.tuning)


def test_ctrl_c_keeps_what_was_measured(
    fleet: Fleet, sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int = 0, total: int = 0) -> None:
        if stage.startswith("measuring") and done == 1:
            raise KeyboardInterrupt

    @contextmanager
    def working() -> Iterator[Progress]:
        yield interrupt

    path = tmp_path / "tuning.json"
    where = ("--tune", "--tracker", fleet.tracker, "--key", fleet.key, "--tuning-db", path)
    with monkeypatch.context() as patch:
        patch.setattr("nmcompile.cli.compile.working", working)
        done = nmc_compile(sparse_onnx, *where)
    assert done.exit_code == 130
    assert f"what was measured is in {path}" in done.stderr
    (first,) = entries_of(path).items()
    assert nmc_compile(sparse_onnx, *where).exit_code == 0
    assert len(entries_of(path)) == LAYERS and first in entries_of(path).items()


@pytest.mark.parametrize(
    ("key", "handler", "said"),
    [
        ("old", "without_vectors", f"needs the CPU features {VECTORS}, which"),
        ("mixed", "of_other_model", "have different CPUs"),
        pytest.param(
            *("uneven", "of_fewer_cores", "with 1 cores at"),
            marks=pytest.mark.skipif(available_threads() == 1, reason="there is one core"),
        ),
    ],
)
def test_devices_that_cannot_tune_are_refused_at_once(
    key: str, handler: str, said: str, tracker: Address, sparse_onnx: Path, tmp_path: Path
) -> None:
    path, handler = tmp_path / "tuning.json", f"tests.support.device_handlers:{handler}"
    with DeviceServer(key, port=0, tracker=tracker) as good:
        with DeviceServer(key, port=0, tracker=tracker, handler=handler) as odd:
            where = ("--tracker", tracker, "--key", key, "--tuning-db", path)
            done = nmc_compile(sparse_onnx, "--tune", *where)
    assert done.exit_code == 1
    assert said in done.stderr and f"{LOOPBACK}:{odd.port}" in done.stderr
    kind = f"{cpu.model()} with {available_threads()} cores at {LOOPBACK}:{good.port}"
    assert (kind in done.stderr) == (key != "old")
    assert not path.exists()


def test_models_are_compiled_for_the_cores_of_the_devices(tracker: Address) -> None:
    handler = "tests.support.device_handlers:of_fewer_cores"
    with DeviceServer("single", port=0, tracker=tracker, handler=handler):
        target, fleet = find_target("avx512"), Fleet(tracker, "single")
        tuning = open_tuning(target, Tuning(measure=True, on=fleet))
    assert tuning is not None
    assert (tuning.database.machine, tuning.cores) == (cpu.model(), 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--tune", "--tracker", "TRACKER", "--key", "nobody"), 1, "no device with the key"),
        (("--tune", "--tracker", "127.0.0.1:1", "--key", "k"), 1, "no tracker answers at"),
        (("--tune", "--tracker", "somewhere", "--key", "k"), 1, "expected HOST:PORT"),
        (("--tune", "--tracker", "127.0.0.1:1"), 2, "expected both, found one"),
        (("--tracker", "127.0.0.1:1", "--key", "k"), 1, "expected --tune"),
        (("--tuning-cpu", "EPYC"), 1, "expected --tuning-db with it"),
    ],
)
def test_wrong_options_are_named(
    words: tuple[str, ...], code: int, said: str, tracker: Address, sparse_onnx: Path
) -> None:
    done = nmc_compile(sparse_onnx, *(str(tracker) if w == "TRACKER" else w for w in words))
    assert done.exit_code == code
    assert said in done.stderr


def test_measurements_of_another_cpu_are_chosen_by_its_name(
    sparse_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tuning.json"
    nmcompile.compile(
        sparse_onnx, output=tmp_path / "m.nmc", tuning=nmcompile.Tuning(path, measure=True)
    )
    document = json.loads(path.read_text())
    document["cpus"]["Xeon Gold 6/85"] = document["cpus"].pop(cpu.model())
    document["cpus"]["Xeon Silver 6/86"] = {}
    path.write_text(json.dumps(document))

    def tuned(*words: object) -> list[Any]:
        done = nmc_compile(sparse_onnx, "--tuning-db", path, "--json", *words)
        assert done.exit_code == 0, done.output
        layers: list[Any] = json.loads(done.stdout)["tuning"]
        return layers

    assert tuned() == []
    assert len(tuned("--tuning-cpu", "gold")) == LAYERS
    for name, said in (("xeon", "has 2 CPU models"), ("arm", "has no CPU models")):
        done = nmc_compile(sparse_onnx, "--tuning-db", path, "--tuning-cpu", name)
        assert done.exit_code == 1
        assert said in done.stderr and "'Xeon Silver 6/86'" in done.stderr


def test_devices_need_no_compiler_to_measure() -> None:
    code = "import sys, nmcompile.devices.worker; print({'tvm', 'torch', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_task_of_another_version_is_named() -> None:
    with pytest.raises(InputError, match="knows the tasks artifact, kernels, check, asked was 'x'"):
        answer({"task": "x"})
