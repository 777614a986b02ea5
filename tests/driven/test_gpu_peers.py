"""What the GPU benchmark does with torch, whose GPU is the CPU here."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import models as whole_models
from benchmarks.gpu import network
from benchmarks.gpu.contents import Layer, Model
from benchmarks.gpu.data import NumpyMath, errors, layer_arrays, layer_input, reference
from benchmarks.gpu.peers import CUDNN, TorchPeers
from benchmarks.gpu.timing import Replay
from nmcompile import runtime
from nmcompile.errors import InputError
from nmcompile.kernels.spec import Conv2d

CONV = Conv2d(2, 32, 7, 6, 48, (3, 3), (2, 1), (1, 1, 1, 1))
MODEL = Model(2, "2:4", "m.so", "m.json", (), {"2:4": "r"})


class FakeDevice:
    """Every event is a millisecond after the last."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[int, float] = {}

    def event(self) -> int:
        self.events[len(self.events)] = 0.0
        return len(self.events) - 1

    def record(self, event: int) -> None:
        self.now += 1.0
        self.events[event] = self.now

    def elapsed(self, start: int, end: int) -> float:
        return self.events[end] - self.events[start]

    def synchronize(self) -> None:
        pass

    def use(self, stream: int) -> Any:
        return contextlib.nullcontext()


def test_peers_compute_the_layer_without_its_bias() -> None:
    layer = Layer(CONV, 1, "2:4", 5, ())
    weight, _ = layer_arrays(CONV, "2:4", False, 5)
    x = layer_input(CONV, False, 7)
    call = TorchPeers(None, "cpu").convolution(layer, x, weight, sets=2)
    found = call(1).float().relu().permute(0, 2, 3, 1).numpy()
    expected = reference(NumpyMath(), CONV, x, weight, np.zeros(48, np.float32))
    assert errors(NumpyMath(), found, expected)[0] < 1e-3


class FakeGraph:
    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1

    def reset(self) -> None:
        pass


@pytest.fixture
def torch_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    return monkeypatch


def cudnn_replay(peers: TorchPeers) -> Replay:
    weight, _ = layer_arrays(CONV, "2:4", False, 5)
    made = dict(
        peers.contenders(Layer(CONV, 1, "2:4", 5, ()), layer_input(CONV, False, 7), weight, 3)
    )
    assert list(made) == [CUDNN]  # a 3x3 is no matrix product
    return made[CUDNN]()


def test_a_peer_is_captured_and_where_it_cannot_be_launched_call_by_call(
    torch_gpu: pytest.MonkeyPatch,
) -> None:
    peers = TorchPeers(None, "cpu")
    replay = cudnn_replay(peers)
    replay.launch()
    assert (replay.how, replay.calls, peers.is_spoilt) == ("graph", 3, False)
    replay.close()

    @contextlib.contextmanager
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    torch_gpu.setattr(torch.cuda, "graph", refuse)
    replay = cudnn_replay(peers)
    replay.launch()
    assert (replay.how, peers.loops, peers.is_spoilt) == ("loop", {CUDNN}, True)
    again = TorchPeers(None, "cpu")
    again.loops.add(CUDNN)
    assert cudnn_replay(again).how == "loop" and not again.is_spoilt


class FakeSession:
    def __init__(self, out: Any) -> None:
        self.out = out

    def run(self, x: Any) -> dict[str, Any]:
        return {"y": self.out}

    def profile(self, x: Any, repeats: int) -> Any:
        raise InputError("no profiles")


class FakeKit:
    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def read(self, member: str) -> bytes:
        data: bytes = self.reference.tobytes()
        return data


@pytest.mark.parametrize("fault", ["", "wrong", "nan"])
def test_whole_models_are_checked_and_timed_beside_torchs(
    fault: str, torch_gpu: pytest.MonkeyPatch
) -> None:
    def build(pattern: str) -> torch.nn.Module:
        torch.manual_seed(0)
        pooled = torch.nn.AdaptiveAvgPool2d(1)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), pooled, torch.nn.Flatten()).eval()

    torch_gpu.setattr(whole_models, "SIZE", 16)
    torch_gpu.setattr(whole_models, "ROUND_MS", 0.0)
    torch_gpu.setattr(whole_models, "write_model", lambda *_: None)
    torch_gpu.setattr(network, "build", build)
    torch_gpu.setattr(torch, "compile", lambda model, mode: model)
    with torch.no_grad():
        expected = build("2:4")(torch.from_numpy(whole_models.model_input(2))).numpy()
    out = expected * (1.1 if fault == "wrong" else 1.0)
    if fault == "nan":
        out[0, 0] = np.nan
    torch_gpu.setattr(runtime, "load", lambda path: FakeSession(out))

    kit: Any = FakeKit(expected)
    device: Any = FakeDevice()
    steps: list[str] = []
    request = whole_models.Request("2:4", compiled=True, timed=True, skip=["torch eager"])
    row = whole_models.run_model(device, kit, MODEL, request, torch, steps.append)
    ours, eager, compiled = row["contenders"]
    assert row["correct"] == (not fault)
    assert ("ms" in ours) == (fault != "nan") and ("failure" in ours) == (fault == "nan")
    assert "tried again" in eager["failure"] and "ms" in compiled
    assert row["torch.compile max-autotune: error_norm"] < 2e-3
    assert row.get("profile_missing") == (None if fault == "nan" else "no profiles")
    assert {step.partition(": ")[0] for step in steps} == {
        "nmcompile",
        "torch.compile max-autotune",
    }
    json.dumps(row, allow_nan=False)
