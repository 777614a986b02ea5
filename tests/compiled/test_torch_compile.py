"""`torch.compile(model, backend="nmcompile")`, as users of torch call it: by its name alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmcompile.dynamo import reasons
from nmcompile.errors import (
    DeviceError,
    InputError,
    PatternError,
    TargetError,
    UnsupportedOperatorError,
)
from nmcompile.runtime import cpu
from tests.support.seed_modules import randomised
from tests.support.tiny_models import SHAPE, TinyNet, example, tiny_net

runs = pytest.mark.isa("avx512f")

Compile = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one test has compiled, another finds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiled(folder: Path) -> Iterator[Compile]:
    """torch.compile with this backend, one thread and this cache."""

    def compile(model: Any, dynamic: bool | None = None, **options: Any) -> Any:
        given = {"cache": folder, "threads": 1, **options}
        return torch.compile(model, backend="nmcompile", dynamic=dynamic, options=given)

    torch._dynamo.reset()
    reasons.warn.cache_clear()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield compile
    torch._dynamo.reset()


@pytest.fixture
def older_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model name : Old CPU\nflags : sse2 sse4_2\n")
    monkeypatch.setattr(cpu, "CPUINFO", file)


@pytest.fixture
def able_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is refused before anything runs."""
    file = tmp_path / "cpuinfo"
    flags = "avx512f avx512bw avx512cd avx512dq avx512vl fma avx2 bmi2"
    file.write_text(f"model name : New CPU\nflags : {flags}\n")
    monkeypatch.setattr(cpu, "CPUINFO", file)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


class Detector(nn.Module):
    """Convolutions, then control flow over what they found: dynamo breaks the graph there."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.backbone(x)
        boxes = self.boxes(found).flatten(2).transpose(1, 2)
        scores = self.scores(found).flatten(2).softmax(1)[:, 1]
        if scores.max() > 0.5:
            best, places = scores.topk(5)
            boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4))
        else:
            best, boxes = scores[:, :0], boxes[:, :0]
        return {"boxes": boxes, "scores": best}


class Counting(nn.Module):
    """Counts its calls in a buffer, and adds one to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x += 1
        found: Tensor = self.conv(x) * self.calls
        return found.flatten(1)


@runs
@pytest.mark.parametrize("pattern", ["2:4", "dense"])
def test_models_give_what_eager_gives(compiled: Compile, pattern: str) -> None:
    model = tiny_net(pattern).eval()
    fast = compiled(model, pattern="2:4" if pattern == "2:4" else "auto", strict=True)
    for seed in (1, 2):
        close(fast(example(seed=seed)), model(example(seed=seed)))


@runs
def test_inference_mode_and_layouts_of_the_caller(compiled: Compile) -> None:
    model = tiny_net("2:4").eval()
    fast = compiled(model)
    with torch.inference_mode():
        x = example().to(memory_format=torch.channels_last)
        close(fast(x), model(x))


@runs
def test_what_torch_keeps_reads_the_layout_it_expects(compiled: Compile) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            found = self.conv(x).relu()
            return found, found.permute(0, 2, 3, 1).cumsum(1)

    model = randomised(Last())
    x = example().to(memory_format=torch.channels_last)
    for found, expected in zip(compiled(model, strict=True)(x), model(x), strict=True):
        close(found, expected)


@runs
def test_control_flow_of_a_detector(compiled: Compile) -> None:
    model = randomised(Detector())
    fast = compiled(model, strict=True)
    for shift in (0.0, -100.0, 100.0):
        with torch.no_grad():
            model.state_dict()["scores.bias"].copy_(torch.tensor([0.0, shift]))
        found, expected = fast(example()), model(example())
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


@runs
def test_batches_that_vary(compiled: Compile) -> None:
    model = tiny_net("2:4").eval()
    fast = compiled(model)
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch in (1, 3, 2, 3):
            x = example((batch, *SHAPE[1:]))
            close(fast(x), model(x))
        x = example((4, *SHAPE[1:]))
        with pytest.warns(RuntimeWarning, match=r"2 forms of a graph .* are compiled"):
            found = fast(x)
    close(found, model(x))


def _load(model: TinyNet) -> None:
    model.load_state_dict(randomised(TinyNet()).state_dict())


def _step(model: TinyNet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.enable_grad():
        model(example()).sum().backward()
    optimizer.step()


def _mask(model: TinyNet) -> None:
    model.wide.weight.data.mul_(0.5)


def _replace(model: TinyNet) -> None:
    model.wide.weight = nn.Parameter(model.wide.weight.detach() * 2)


@runs
@pytest.mark.parametrize("change", [_load, _step, _mask, _replace])
def test_changed_weights_are_noticed(compiled: Compile, change: Callable[[TinyNet], None]) -> None:
    model = tiny_net("2:4").eval()
    fast = compiled(model)
    before = fast(example())
    change(model)
    assert not torch.allclose(model(example()), before)
    close(fast(example()), model(example()))


@runs
def test_instances_of_one_class_have_weights_of_their_own(compiled: Compile) -> None:
    one, other = tiny_net("2:4").eval(), randomised(TinyNet())
    fast, also = compiled(one), compiled(other)
    for _ in range(2):
        close(fast(example()), one(example()))
        close(also(example()), other(example()))


@runs
def test_what_a_model_writes_to(compiled: Compile) -> None:
    model, twin = randomised(Counting()), randomised(Counting())
    twin.load_state_dict(model.state_dict())
    fast = compiled(model)
    for _ in range(3):
        x, y = example(), example()
        close(fast(x), twin(y))
        close(x, y)
    close(model.calls, twin.calls)


@runs
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, torch
        from tests.support import twins
        from tests.support.tiny_models import example, tiny_net
        twins.use()
        model = tiny_net("2:4").eval()
        options = {"cache": sys.argv[1], "threads": 1, "strict": True}
        fast = torch.compile(model, backend="nmcompile", options=options)
        with torch.inference_mode():
            print(float((fast(example()) - model(example())).abs().max()) < 1e-4)
        print("nmcompile.compiler" in sys.modules)
    """)
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [text.split() for text in found] == [["True", "True"], ["True", "False"]]


@runs
def test_what_is_kept_has_the_weights_once(compiled: Compile, tmp_path: Path) -> None:
    """In the artifact: a later process would read any others for nothing."""
    model = randomised(nn.Conv2d(512, 512, 3))
    x = torch.randn(1, 512, 3, 3)
    close(compiled(model, cache=tmp_path, strict=True)(x), model(x))
    sizes = sorted(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    weights = model.weight.nbytes
    assert sum(size > weights / 4 for size in sizes) == 1 and weights < sizes[-1] < 1.1 * weights


@runs
def test_the_operator_survives_torch_export(sparse_artifact: Path, tmp_path: Path) -> None:
    import nmcompile.dynamo.operator  # noqa: F401

    class Deployed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.ops.nmcompile.run([x], str(sparse_artifact))[0]
            return found.softmax(1)

    program = torch.export.export(Deployed(), (example(),))
    torch.export.save(program, tmp_path / "model.pt2")
    found = torch.export.load(tmp_path / "model.pt2").module()(example())
    with torch.no_grad():
        close(found, tiny_net("2:4").eval()(example()).softmax(1))


def test_gradients_are_refused(compiled: Compile) -> None:
    model = tiny_net().eval()
    fast = compiled(model)
    with torch.enable_grad(), pytest.raises(InputError, match=r"torch\.inference_mode\(\)"):
        fast(example())


def test_training_mode_is_refused(compiled: Compile, able_cpu: None) -> None:
    model = tiny_net().train()
    with pytest.raises(InputError, match=r"batch_norm.* in training mode; call model\.eval\(\)"):
        compiled(model)(example())


def test_active_dropout_is_refused(compiled: Compile, able_cpu: None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Dropout()).train()
    with pytest.raises(InputError, match=r"dropout.* in training mode"):
        compiled(model)(example())


def test_an_unknown_option_is_named(compiled: Compile) -> None:
    with pytest.raises(InputError, match=r"'patern' .* is unknown; .* did you mean 'pattern'"):
        compiled(tiny_net().eval(), patern="2:4")(example())


def test_a_mode_is_refused() -> None:
    torch._dynamo.reset()
    fast = torch.compile(tiny_net().eval(), backend="nmcompile", mode="max-autotune")
    with torch.no_grad(), pytest.raises(InputError, match="mode is unknown here"):
        fast(example())


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("pattern", "two:four", PatternError),
        ("pattern", 2, InputError),
        ("precision", "float16", InputError),
        ("target", "avx1024", TargetError),
        ("target", "sm_80", InputError),
        ("threads", 0, InputError),
        ("threads", True, InputError),
        ("cache", 1, InputError),
        ("strict", "yes", InputError),
    ],
)
def test_values_of_options_are_checked(
    compiled: Compile, option: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        compiled(tiny_net().eval(), **{option: value})(example())


def test_a_target_has_to_compute_in_the_precision(compiled: Compile) -> None:
    with pytest.raises(InputError, match="avx512 does not compute in bf16"):
        compiled(tiny_net().eval(), target="avx512", precision="bf16")(example())


def test_a_claimed_pattern_is_checked(compiled: Compile, able_cpu: None) -> None:
    with pytest.raises(PatternError, match="wide"):
        compiled(tiny_net().eval(), pattern="2:4")(example())


def test_an_older_cpu_falls_back_with_one_warning(compiled: Compile, older_cpu: None) -> None:
    model = tiny_net().eval()
    fast = compiled(model)
    with pytest.warns(RuntimeWarning, match=r"torch runs a graph itself: .*avx2.* Old CPU"):
        found = fast(example())
    torch.testing.assert_close(found, model(example()))
    fast(example())  # a second warning would be an error


def test_strict_on_an_older_cpu(compiled: Compile, older_cpu: None) -> None:
    with pytest.raises(DeviceError, match="avx2"):
        compiled(tiny_net().eval(), strict=True)(example())


def test_a_graph_without_layers_is_torchs(
    compiled: Compile, able_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As between the breaks of a detection model: nothing that a user could change."""
    fast = compiled(lambda x: x.relu() + 2, strict=True)
    with caplog.at_level("INFO", logger="nmcompile.dynamo"):
        found = fast(example())
    assert "none of the 2 operators" in caplog.text
    close(found, example().relu() + 2)
    caplog.clear()
    with caplog.at_level("INFO", logger="nmcompile.dynamo"):
        for batch in range(2, 4 + torch._dynamo.config.recompile_limit):
            x = example((batch, *SHAPE[1:]))
            close(fast(x), x.relu() + 2)
    assert caplog.text.count("none of the 2 operators") <= 1, "once for sizes that vary"


def test_parameters_of_inference_mode_are_torchs(compiled: Compile, able_cpu: None) -> None:
    with torch.inference_mode():
        model = randomised(TinyNet())
        with pytest.warns(RuntimeWarning, match=r"made within torch\.inference_mode\(\)"):
            found = compiled(model)(example())
        close(found, model(example()))


def test_autocast_is_torchs(compiled: Compile, able_cpu: None) -> None:
    model = tiny_net().eval()
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(RuntimeWarning, match=r"torch\.autocast is on"):
            found = compiled(model)(example())
        close(found, model(example()))


def test_a_float_graph_is_no_int8(compiled: Compile, able_cpu: None) -> None:
    flags = cpu.CPUINFO.read_text().replace("\n", " ").strip() + " avx512_vnni avx512vbmi\n"
    cpu.CPUINFO.write_text(flags.replace(" flags", "\nflags"))
    with pytest.raises(UnsupportedOperatorError, match="int8: expected a quantised graph"):
        compiled(tiny_net().eval(), precision="int8", strict=True)(example())


def test_functional_weights_are_inputs(compiled: Compile, able_cpu: None) -> None:
    """What is no parameter may change from call to call."""
    weight = example((16, 3, 3, 3))
    fast = compiled(lambda x, w: functional.conv2d(x, w))
    with pytest.warns(RuntimeWarning, match="none of the 1 operators"):
        found = fast(example(), weight)
    close(found, functional.conv2d(example(), weight))
    with pytest.raises(UnsupportedOperatorError, match="none of the 1 operators"):
        compiled(lambda x, w: functional.conv2d(x, w), strict=True)(example(), weight)
