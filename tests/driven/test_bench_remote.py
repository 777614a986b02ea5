"""`nmc bench` on other machines: cases come back with their device, and none is lost."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from nmcompile.bench.report import render_report
from nmcompile.bench.results import read_run
from nmcompile.cli import app
from nmcompile.devices import Address, DeviceServer
from nmcompile.devices.tracker import LOOPBACK
from nmcompile.errors import DeviceError
from tests.support.device_handlers import kill
from tests.support.waiting import eventually

pytestmark = pytest.mark.isa("avx512f")


@pytest.fixture(scope="module")
def devices(tracker: Address) -> Iterator[list[DeviceServer]]:
    first, second = (DeviceServer("here", port=0, tracker=tracker) for _ in range(2))
    with first, second:
        yield [first, second]


def bench(*words: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.mark.alone  # roofs are compared, which are of two moments
def test_cases_are_measured_on_devices(
    tracker: Address, devices: list[DeviceServer], dense_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run.json"
    done = bench(
        *(dense_onnx, "--patterns", "dense,2:4", "--threads", "1,2", "--rounds", 5),
        *("--tracker", tracker, "--key", "here", "-o", output, "--layers"),
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("roofs of the machine: FMA") == 4
    run = read_run(output)
    assert run.complete and len(run.cases) == 4
    settings = {(case.pattern, case.threads) for case in run.cases}
    assert settings == {(p, t) for p in ("dense", "2:4") for t in (1, 2)}
    names = {f"here at {LOOPBACK}:{device.port}" for device in devices}
    for case in run.cases:
        assert case.device in names and case.device in run.devices
        assert len(case.samples_ms) == 5 and case.layers
        assert case.accuracy is not None and case.accuracy.max_error < 1e-4
        roofs = run.device_roofs[case.device]
        assert 0 < roofs.load <= 1.2 * roofs.fma
        rated = [layer for layer in case.layers if layer.nonzero_gflops is not None]
        assert rated and all(layer.roof_share for layer in rated if layer.roof is not None)
        assert any(layer.roof is not None for layer in rated)
    assert run.roofs is None, "this machine was not measured"
    page = render_report([run])
    assert all(device in page for device in run.devices)
    for roofs in run.device_roofs.values():
        assert f"multiply-adds: {roofs.fma:.0f} GFLOP/s" in page
        assert f"{roofs.fma:.0f} GFLOP/s, {roofs.load:.0f} with loads" in page


def test_a_device_that_dies_costs_no_case(
    tracker: Address, dense_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run.json"
    with DeviceServer("dying", port=0, tracker=tracker) as doomed:
        with DeviceServer("dying", port=0, tracker=tracker):
            victim = psutil.Process(doomed.pid)

            def wait_and_kill() -> None:
                eventually(lambda: bool(victim.children()), "at work")
                kill(doomed)

            killer = threading.Thread(target=wait_and_kill)

            def kill_at_work(stage: str, done: int = 0, total: int = 0) -> None:
                if stage == "measuring" and done == 0 and killer.ident is None:
                    killer.start()  # the jobs begin when this returns

            monkeypatch.setattr(
                "nmcompile.cli.bench.command.working", lambda: _Progress(kill_at_work)
            )
            done = bench(
                *(dense_onnx, "--patterns", "dense,2:4", "--threads", "1,2"),
                *("--rounds", 5, "--tracker", tracker, "--key", "dying", "-o", output),
            )
            killer.join()
    assert done.exit_code == 0, done.output
    run = read_run(output)
    assert run.complete and len(run.cases) == 4
    assert all(case.samples_ms for case in run.cases)
    assert len(run.devices) == 1


class _Progress:
    def __init__(self, report: object) -> None:
        self.report = report

    def __enter__(self) -> object:
        return self.report

    def __exit__(self, *error: object) -> None:
        pass


def test_an_error_on_the_device_is_told(
    tracker: Address, devices: list[DeviceServer], dense_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run.json"
    words = (dense_onnx, "--threads", "1", "--rounds", 5, "-o", output)
    done = bench(*words, "--tracker", tracker, "--key", "nobody")
    assert done.exit_code == 1
    assert "has no device with the key 'nobody'" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tracker", "127.0.0.1:9190"], "expected both, found one"),
        (["--key", "here"], "expected both, found one"),
        (["--tracker", "a:1", "--key", "b", "--against", "onnxruntime"], "devices run nmcompile"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    words: list[str], said: str, dense_onnx: Path
) -> None:
    done = bench(dense_onnx, *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_tracker_that_is_not_there_is_named(dense_onnx: Path, tmp_path: Path) -> None:
    done = bench(dense_onnx, "--tracker", "127.0.0.1:1", "--key", "here", "-o", tmp_path / "r.json")
    assert done.exit_code == 1
    assert "no tracker answers at 127.0.0.1:1" in done.stderr
    assert DeviceError.__name__ not in done.stderr
