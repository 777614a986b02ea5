"""Whole models in bfloat16, as a user compiles and runs them, against torch."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nmcompile as nmc
from nmcompile import runtime
from nmcompile.cli import app
from nmcompile.errors import DeviceError, InputError, TargetError
from nmcompile.kernels.avx512_amx import twin
from nmcompile.kernels.catalog import find_row
from nmcompile.machine import roofs, trial
from nmcompile.precision import paying_precision
from nmcompile.runtime import cpu
from nmcompile.targets import find_target
from nmcompile.tuning import tuner
from tests.support.examples import crossed
from tests.support.gpu_models import MODELS, pruned
from tests.support.peer import by_peer
from tests.support.tiny_models import example, tiny_net

TOLERANCE = 2e-2  # of the range of the output
ON_TILES, ON_LANES = "avx512_amx", "avx512_bf16"
on_both = pytest.mark.parametrize(
    "target",
    [
        pytest.param(ON_LANES, marks=pytest.mark.isa("avx512_bf16", native=True)),
        pytest.param(ON_TILES, marks=pytest.mark.isa("amx_bf16")),
    ],
)


def compile_bf16(model: nn.Module, x: torch.Tensor, path: Path, target: str) -> Any:
    return nmc.compile(model, output=path, target=target, precision="bf16", example_inputs=(x,))


@on_both
@pytest.mark.parametrize(("name", "pattern"), crossed(list(MODELS), ["2:4", "dense"]))
def test_models_compute_what_torch_does(
    name: str, pattern: str, target: str, tmp_path: Path
) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = pruned(make(), pattern).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "m.nmc"
    result = compile_bf16(model, x, path, target)
    session = runtime.load(path, threads=1)
    found = [np.asarray(y) for y in session.run(x.numpy()).values()]
    with torch.no_grad():
        wanted = model(x)
    for ours, theirs in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        span = float(theirs.max() - theirs.min())
        assert ours.dtype == np.float32 and ours.shape == tuple(theirs.shape)
        assert np.abs(ours - theirs.numpy()).max() < TOLERANCE * span
    rows = [find_row(call.symbol) for call in session.manifest.calls]
    convolutions = [row for row in rows if row is not None and row.op == "conv2d"]
    assert convolutions and all(row.dtype == "bfloat16" for row in convolutions)
    assert result.target == target


class Joined(nn.Module):
    """A constant beside what a convolution computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(20, 8, 1)
        self.known: torch.Tensor
        self.register_buffer("known", torch.linspace(-1, 1, 4 * 36).reshape(1, 4, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.cat([self.first(x), self.known], 1))
        return result


@on_both
def test_constants_are_rounded_too(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(1, 3, 8, 8)
    compile_bf16(model, x, tmp_path / "m.nmc", target)
    found = np.asarray(next(iter(runtime.load(tmp_path / "m.nmc").run(x.numpy()).values())))
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(found - wanted).max() < TOLERANCE * np.ptp(wanted)


@on_both
def test_two_threads_and_a_batch(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = MODELS["residual"]
    model = pruned(make(), "2:4").eval()
    x = torch.randn((3, *shape[1:]))
    compile_bf16(model, x, tmp_path / "m.nmc", target)
    one, two = (runtime.load(tmp_path / "m.nmc", threads=count) for count in (1, 2))
    first, second = (np.asarray(next(iter(s.run(x.numpy()).values()))) for s in (one, two))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "bf16", "target": "avx512"}, TargetError, (ON_LANES, ON_TILES, "avx512")),
        ({"precision": "bf16", "target": "sm_80"}, TargetError, (ON_LANES, ON_TILES, "sm_80")),
        ({"precision": "fp8", "target": ON_TILES}, TargetError, ("fp8", "int8 or bf16")),
        (
            {"precision": "bf16", "target": ON_TILES, "calibration": [np.zeros(3)]},
            InputError, ("calibration", "int8", "bf16"),
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    options: dict[str, Any], error: type[Exception], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        nmc.compile(tiny_net(), output=tmp_path / "m.nmc", example_inputs=(example(),), **options)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "m.nmc").exists()


class _NoPermission:
    @staticmethod
    def syscall(*arguments: int) -> int:
        assert arguments == (158, 0x1023, 18)
        return -1


def test_a_kernel_that_permits_no_tiles_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their use without permission would end the process."""
    monkeypatch.setattr(cpu, "host", lambda: ("a CPU", frozenset({"amx_tile"})))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: _NoPermission)
    with pytest.raises(DeviceError, match=r"m\.nmc .*does not permit.*avx512_vnni"):
        cpu.require(["amx_tile"], "m.nmc")


def test_a_cpu_without_tiles_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compile_bf16(tiny_net("2:4"), example(), tmp_path / "m.nmc", ON_TILES)
    name, flags = cpu.host()
    monkeypatch.setattr(cpu, "host", lambda: (name, flags - {"amx_tile", "amx_bf16"}))
    with pytest.raises(DeviceError, match=r"amx_tile.*amx_bf16|amx_bf16.*amx_tile"):
        runtime.load(tmp_path / "m.nmc")


def test_the_twin_knows_every_instruction() -> None:
    from nmcompile.kernels.avx512_amx.instructions import Hardware

    public = {name for name in vars(Hardware) if not name.startswith("_")}
    assert public == {name for name in vars(twin.Software) if not name.startswith("_")}


@on_both
def test_the_command_compiles(target: str, dense_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.nmc"
    command = ["compile", str(dense_onnx), "-o", str(path), "--target", target]
    done = CliRunner().invoke(app, [*command, "--precision", "bf16"])
    assert done.exit_code == 0, done.output
    x = example().numpy()
    found = next(iter(runtime.load(path).run(x).values()))
    (wanted,) = by_peer(dense_onnx, {"x": x})
    assert np.abs(np.asarray(found) - wanted).max() < TOLERANCE * np.ptp(wanted)


@on_both
def test_layers_are_tuned_for_their_precision(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured in bfloat16 says nothing of float32, and the other way round."""
    monkeypatch.setattr(tuner, "CANDIDATES", 2)
    monkeypatch.setattr(tuner, "OTHERS", 1)
    monkeypatch.setattr(trial, "BUDGET", 0.05)
    tuning = nmc.Tuning(measure=True, database=tmp_path / "tuning.json")
    options: dict[str, Any] = {"example_inputs": (example(),), "tuning": tuning}
    for name, precision in ((target, "bf16"), ("avx512", None), (target, "bf16")):
        path = tmp_path / "m.nmc"
        result = nmc.compile(
            tiny_net("2:4"), output=path, target=name, precision=precision, **options
        )
        kernels = [tuned.kernel for tuned in result.tuning]
        assert kernels and all(("_bf16_" in kernel) == (precision == "bf16") for kernel in kernels)


@pytest.mark.isa("avx512_bf16", native=True)
@pytest.mark.parametrize("pays", [False, True])
def test_float32_is_kept_where_vectors_multiply_bfloat16_no_faster(
    pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = roofs.Roofs(fma=100.0, load=50.0, bf16=200.0 if pays else 105.0)
    monkeypatch.setattr(roofs, "measure_roofs", lambda: measured)
    result = compile_bf16(tiny_net("2:4"), example(), tmp_path / "m.nmc", ON_LANES)
    rows = [find_row(call.symbol) for call in runtime.load(tmp_path / "m.nmc").manifest.calls]
    dtypes = {row.dtype for row in rows if row is not None}
    assert dtypes == {"bfloat16" if pays else "float32"}
    told = [note for note in result.report.notes if "compiled in float32" in note]
    assert len(told) == (not pays)
    assert pays or ("105 GFLOP/s" in told[0] and "float32 at 100" in told[0])


@pytest.mark.isa("avx512_bf16", native=True)
def test_another_machine_is_not_judged_by_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = roofs.Roofs(fma=100.0, load=50.0, bf16=105.0)
    monkeypatch.setattr(roofs, "measure_roofs", lambda: measured)
    target = find_target(ON_LANES)
    assert paying_precision("bf16", target, elsewhere=True) == ("bf16", ())
    assert paying_precision("bf16", find_target(ON_TILES), elsewhere=False) == ("bf16", ())
    name, flags = cpu.host()
    monkeypatch.setattr(cpu, "host", lambda: (name, flags - {"avx512_bf16"}))
    assert paying_precision("bf16", target, elsewhere=False) == ("bf16", ())
