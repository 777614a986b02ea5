"""The GPU benchmark's numbers and decisions, without a GPU."""

import json
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from benchmarks.gpu import tables
from benchmarks.gpu.contents import Contents, Layer, Model
from benchmarks.gpu.data import (
    NumpyMath,
    TorchMath,
    energy_kept,
    errors,
    layer_arrays,
    layer_input,
    network_arrays,
    reference,
)
from benchmarks.gpu.peers import CUDNN
from benchmarks.gpu.plan import make_plan, select
from benchmarks.gpu.result import Result, bars, ranking
from benchmarks.gpu.supervisor import Supervisor
from benchmarks.gpu.timing import Replay, take_turns
from nmcompile.errors import InputError
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity.tensor_core import first_broken_group
from tests.support.examples import examples
from tests.support.tensor_core_runner import geometries

# Data and references

SMALL = Conv2d(2, 32, 7, 6, 48, (3, 3), (2, 1), (1, 0, 1, 2))


def by_torch(conv: Conv2d, exact: bool) -> Any:
    weight, bias = layer_arrays(conv, "dense", exact, 5)
    x = layer_input(conv, exact, 7)[..., : conv.in_channels].astype(np.float64)
    top, left, bottom, right = conv.padding
    image = torch.nn.functional.pad(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), (left, right, top, bottom)
    )
    out = torch.nn.functional.conv2d(
        image, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), conv.stride
    )
    return out.relu().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("math", [NumpyMath(), TorchMath("cpu")], ids=["numpy", "torch"])
@examples(20)
@given(conv=geometries())
def test_the_reference_is_torchs_convolution(math: Any, conv: Conv2d) -> None:
    conv = replace(conv, dilation=(1, 1))
    for exact in (True, False):
        weight, bias = layer_arrays(conv, "dense", exact, 5)
        found = np.asarray(reference(math, conv, layer_input(conv, exact, 7), weight, bias))
        expected = by_torch(conv, exact)
        if exact:
            assert (found == expected).all()
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8", "1:16"])
def test_pruned_weights_suit_the_kernels_and_keep_their_energy(pattern: str) -> None:
    pruned, bias = network_arrays(3, (64, 64, 3, 3), pattern)
    dense, _ = network_arrays(3, (64, 64, 3, 3), "dense")
    assert first_broken_group(pruned) is None
    assert np.square(pruned).sum() == pytest.approx(np.square(dense).sum(), rel=0.05)
    assert 0 < energy_kept(pattern) < 1
    assert (pruned == pruned.astype(np.float16)).all() and bias.any()


def test_stem_and_classifier_stay_dense() -> None:
    for shape in ((64, 3, 7, 7), (1000, 2048)):
        weight, _ = network_arrays(0, shape, "2:4")
        assert np.count_nonzero(weight) > 0.99 * weight.size


def test_seeds_give_the_same_numbers_for_ever() -> None:
    """A kit made with one version of numpy is run with another."""
    weight, bias = layer_arrays(Conv2d(1, 16, 1, 1, 16, (1, 1)), "2:4", False, 0)
    assert weight[0, :4, 0, 0].tolist() == [-0.60107421875, 0.0, 0.0, -0.444580078125]
    _, whole = layer_arrays(Conv2d(1, 16, 1, 1, 16, (1, 1)), "dense", True, 0)
    assert whole[:4].tolist() == [-2.0, -6.0, -2.0, -8.0]
    assert bias.dtype == np.float32


@pytest.mark.parametrize("math", [NumpyMath(), TorchMath("cpu")], ids=["numpy", "torch"])
def test_nan_is_an_error(math: Any) -> None:
    good = math.array(np.ones((3, 4), np.float16))
    bad = math.array(np.array([[1, np.nan, 1, 1]] * 3, np.float16))
    assert errors(math, good, good) == (0.0, 0.0)
    assert all(not value < 1e9 for value in errors(math, bad, good))


# Timing


class FakeDevice:
    """Time passes when something is launched."""

    stream = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[int, float] = {}
        self.order: list[str] = []

    def event(self) -> int:
        self.events[len(self.events)] = 0.0
        return len(self.events) - 1

    def record(self, event: int) -> None:
        self.events[event] = self.now

    def elapsed(self, start: int, end: int) -> float:
        return self.events[end] - self.events[start]

    def synchronize(self) -> None:
        pass

    def replay(self, name: str, ms: float, calls: int) -> Replay:
        def launch() -> None:
            self.now += ms * calls
            self.order.append(name)

        return Replay(launch, calls, "graph")


def test_contenders_take_turns_and_short_ones_are_repeated() -> None:
    device: Any = FakeDevice()
    replays = {"short": device.replay("short", 0.01, 4), "long": device.replay("long", 5.0, 1)}
    times = take_turns(device, replays, rounds=3, round_ms=2.0)
    assert times["short"].ms == pytest.approx(0.01) and times["long"].ms == pytest.approx(5.0)
    assert device.order[:4] == ["short", "short", "long", "long"]  # warm-ups
    rounds = "".join(name[0] for name in device.order[4:])
    assert rounds == "s" * 50 + "l" + "l" + "s" * 50 + "s" * 50 + "l"


# The plan


def layer(batch: int) -> Layer:
    return Layer(replace(SMALL, batch=batch), 1, "2:4", 0, ())


def model(batch: int) -> Model:
    return Model(batch, "2:4", "m.so", "m.json", (), {"2:4": "r", "1:4": "r"})


def test_what_the_bars_are_about_comes_first() -> None:
    contents = Contents(
        "sm_80", "0", tuple(map(layer, (1, 16, 64))), tuple(map(model, (64, 16, 1)))
    )
    plan = make_plan(contents, {})
    assert [part.name for part in plan] == [
        *("layers-64", "model-64", "compiled-64", "layers-16", "model-16", "layers-1", "model-1"),
        *("patterns", "compiled-16", "compiled-1"),
    ]
    assert sum(part.seconds for part in plan) <= 570
    assert [part.needs_torch for part in plan].count(True) == 3
    assert [job.name for job in plan[7].jobs][:1] == ["resnet50 1:4 b64"]


def test_parts_are_chosen_by_name_or_kind() -> None:
    contents = Contents("sm_80", "0", tuple(map(layer, (1, 16, 64))), tuple(map(model, (1, 16))))
    plan = make_plan(contents, {})
    names = [part.name for part in select(plan, ["patterns", "model-1", "layers"])]
    assert names == ["layers-64", "layers-16", "layers-1", "model-1", "patterns"]
    assert select(plan, []) == plan
    with pytest.raises(InputError, match="--parts mode: expected some of layers-64, "):
        select(plan, ["mode"])


# Supervision

WORKER = """
import json, os, sys, time
for line in sys.stdin:
    job = json.loads(line)
    print(json.dumps({"step": "first: check"}), flush=True)
    if job["kind"] == "die" and "second" not in job["skip"]:
        print(json.dumps({"step": "second: time"}), flush=True)
        os._exit(7)
    if job["kind"] == "hang":
        time.sleep(60)
    if job["kind"] == "fail":
        print(json.dumps({"failure": "no luck", "fatal": False}), flush=True)
        continue
    last = job["kind"] == "last"
    print(json.dumps({"result": [os.getpid(), job["skip"]], "last": last}), flush=True)
"""


def supervisor(folder: Path) -> Supervisor:
    return Supervisor([sys.executable, "-c", WORKER], folder / "worker.log")


def test_a_job_whose_worker_dies_is_tried_again_without_the_culprit(tmp_path: Path) -> None:
    watched = supervisor(tmp_path)
    later = time.monotonic() + 60
    try:
        first, _ = watched.run({"kind": "work"}, "a", later)
        second, skipped = watched.run({"kind": "die"}, "b", later)
    finally:
        watched.close()
    assert first != second and skipped == ["second"]
    (failure,) = watched.failures
    assert failure["job"] == "b" and failure["step"] == "second: time"
    assert failure["failure"] == "the process ended (code 7); see worker.log"


def test_a_job_that_hangs_is_given_up_and_the_next_one_runs(tmp_path: Path) -> None:
    watched = supervisor(tmp_path)
    try:
        assert watched.run({"kind": "hang"}, "a", time.monotonic() + 1.0) is None
        assert watched.run({"kind": "fail"}, "b", time.monotonic() + 60) is None
        assert watched.run({"kind": "last"}, "c", time.monotonic() + 60) is not None
        assert watched.run({"kind": "work"}, "d", time.monotonic() + 60) is not None
    finally:
        watched.close()
    assert [(f["job"], f["failure"]) for f in watched.failures] == [
        ("a", "did not finish in its time"),
        ("b", "no luck"),
    ]


def test_a_worker_that_may_not_go_on_is_replaced(tmp_path: Path) -> None:
    watched = supervisor(tmp_path)
    later = time.monotonic() + 60
    try:
        pids = [watched.run({"kind": kind}, kind, later)[0] for kind in ("last", "work", "work")]
    finally:
        watched.close()
    assert pids[0] != pids[1] == pids[2]


# Results


def variant(method: str, ms: float | None, rank: int = 0, chosen: bool = False) -> dict[str, Any]:
    row = {"name": f"{method} {rank}", "method": method, "rank": rank, "chosen": chosen}
    if ms is None:
        return {**row, "exact": False, "failure": "5 of 9 whole numbers differ"}
    return {**row, "exact": True, "ms": ms, "tflops": 1.0, "roof_share": 0.5}


def layer_row(window: str, variants: list[dict[str, Any]], cudnn: float) -> dict[str, Any]:
    return {
        "layer": f"{window} layer",
        "window": window,
        "batch": 64,
        "count": 1,
        "pattern": "2:4",
        "variants": variants,
        "peers": [{"name": CUDNN, "ms": cudnn, "how": "loop"}],
    }


@pytest.fixture
def result() -> Result:
    machine = {
        "gpu": "NVIDIA H100 80GB HBM3",
        "arch": "sm_90a",
        "driver": "13.0",
        "python": "3.12.3",
        "torch": "2.11.0",
        "torch_missing": "",
    }
    rows = [
        layer_row("3x3", [variant("wgmma", 1.0, chosen=True), variant("wgmma", 0.8, 1)], 1.2),
        layer_row("3x3", [variant("wgmma", 1.0, chosen=True), variant("sparse", 1.0)], 1.3),
        layer_row("1x1", [variant("wgmma", None), variant("sparse", 0.5, chosen=True)], 1.0),
    ]
    contenders = [
        {"name": "nmcompile", "ms": 2.0},
        {"name": "torch eager", "failure": "out of memory"},
        {"name": "torch.compile max-autotune", "ms": 3.0},
    ]
    whole = {"model": "resnet50", "pattern": "2:4", "batch": 64, "contenders": contenders}
    whole |= {"correct": False, "error_norm": 0.5, "error_max": 0.7}
    part = {"state": "done", "seconds": 1.0, "failures": []}
    parts = {"layers-64": {**part, "rows": rows}, "compiled-64": {**part, "rows": [whole]}}
    return Result("digest", machine, {"flops": 1e15, "bandwidth": 3e12, "measured": True}, parts)


def test_bars_are_met_by_all_layers_or_missed(result: Result) -> None:
    found = {bar["bar"]: bar for bar in bars(result)}
    assert found["layers exact on whole numbers"]["state"] == "missed"
    assert found["resnet50 within 2e-2 of float32"]["state"] == "missed"
    wgmma = found["wgmma.sp over cuDNN dense, 3x3, batch 64"]
    assert (wgmma["state"], wgmma["met_by"], wgmma["of"]) == ("missed", 1, 2)  # 1.5 and 1.3
    assert wgmma["mean"] == pytest.approx((1.5 * 1.3) ** 0.5)
    assert found["mma.sp over cuDNN dense, 1x1, batch 64"]["state"] == "met"
    assert found["wgmma.sp over cuDNN dense, 1x1, batch 64"]["state"] == "not measured"
    over = found["resnet50 2:4 over torch.compile max-autotune, batch 64"]
    assert over["state"] == "met" and over["mean"] == pytest.approx(1.5)


def test_ranking_says_what_the_models_favourites_lose(result: Result) -> None:
    found = {row["method"]: row for row in ranking(result)}
    assert found["wgmma"]["largest_loss"] == pytest.approx(1.25)
    assert found["all"]["layers"] == 2 and found["all"]["worst_layer"] == "3x3 layer"


def test_failures_of_all_kinds_reach_the_tables(result: Result) -> None:
    text = tables.render(result)
    for reason in ("5 of 9 whole numbers differ", "out of memory", "error 0.5 by norm"):
        assert reason in text
    assert "| resnet50 2:4 over torch.compile max-autotune, batch 64 |   1.25 | 1.50" in text
    assert result.loops() == [CUDNN]


def test_a_result_is_kept_for_the_same_kit_and_gpu_only(result: Result, tmp_path: Path) -> None:
    assert result.file_name == "nvidia-h100-80gb-hbm3"
    path = tmp_path / "results" / "r.json"
    result.save(path)
    assert json.loads(path.read_text())["bars"] == bars(result)
    assert [file.name for file in path.parent.iterdir()] == ["r.json"]
    for kit, machine, kept in (
        ("digest", result.machine, True),
        ("another", result.machine, False),
        ("digest", {"gpu": "another"}, False),
    ):
        other = Result(kit, dict(machine))
        other.take_over(path)
        assert (other.parts == result.parts) == kept
    path.write_text(textwrap.dedent("not JSON"))
    other = Result("digest", result.machine)
    other.take_over(path)
    assert not other.parts
