"""Whole models on the GPU at hand, against torch; tensors of torch in and out; profiles; tuning."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmcompile
from nmcompile.errors import InputError
from nmcompile.runtime import Session, load
from tests.conftest import need_gpu
from tests.support.gpu_models import MODELS, pruned
from tests.support.tiny_models import SHAPE, example, tiny_net

pytestmark = [pytest.mark.gpu, pytest.mark.tool("nvcc")]

TOLERANCE = 2e-2  # of the range of the output: float16 in between


def compiled(model: nn.Module, shape: tuple[int, ...], folder: Path, **options: Any) -> Path:
    x = (torch.randn(shape),)
    path = folder / "m.nmc"
    nmcompile.compile(model, output=path, target="cuda", example_inputs=x, **options)
    return path


def assert_close(found: Any, expected: torch.Tensor) -> None:
    span = float(expected.max() - expected.min())
    assert np.abs(np.asarray(found) - expected.numpy()).max() < TOLERANCE * span


def outputs_of(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        result = model.eval()(x)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8", "1:16"])
@pytest.mark.parametrize("name", MODELS)
def test_model_computes_what_torch_does(name: str, pattern: str, tmp_path: Path) -> None:
    """More than once: from the second run on it is a CUDA graph, which has to read new inputs."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = pruned(make(), pattern)
    session = load(compiled(model, shape, tmp_path))
    for seed in range(4):
        x = example(shape, seed)
        found = session.run(x).values()
        for ours, theirs in zip(found, outputs_of(model, x), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a"])
def test_targets_of_the_same_limits_run(target: str, tmp_path: Path) -> None:
    need_gpu(target)
    model, x, path = tiny_net("2:4"), example(), tmp_path / "m.nmc"
    nmcompile.compile(model, output=path, target=target, example_inputs=(x,))
    (found,) = load(path).run(x).values()
    assert_close(found, outputs_of(model, x)[0])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return pruned(MODELS["residual"][0](), "2:4")


@pytest.fixture(scope="module")
def session(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return load(compiled(model, MODELS["residual"][1], tmp_path_factory.mktemp("gpu")))


def draw(seed: int) -> torch.Tensor:
    return example(MODELS["residual"][1], seed)


def test_threads_have_graphs_of_their_own(session: Session, model: nn.Module) -> None:
    expected = [outputs_of(model, draw(seed))[0] for seed in range(4)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(20):
                (found,) = session.run(draw(seed)).values()
                assert_close(found, expected[seed])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_profile_names_the_layers(session: Session) -> None:
    times = session.profile(draw(0), repeats=3)
    assert [time.symbol for time in times] == [call.symbol for call in session.manifest.calls]
    assert [time.layer for time in times] == [call.layer for call in session.manifest.calls]
    assert all(time.ms > 0 for time in times)
    before = session.run(draw(1))
    session.profile(draw(0), repeats=1)
    for first, second in zip(before.values(), session.run(draw(1)).values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_tuning_measures_here_and_keeps_the_result(tmp_path: Path) -> None:
    database, model = tmp_path / "tuning.json", tiny_net("2:4")
    options = {"tuning": nmcompile.Tuning(database, measure=True)}
    path = compiled(model, SHAPE, tmp_path, **options)
    before = database.read_bytes()
    (found,) = load(path).run(example()).values()
    assert_close(found, outputs_of(model, example())[0])
    compiled(model, SHAPE, tmp_path, **options)
    assert database.read_bytes() == before


# ---- Tensors of torch in the GPU's memory


@pytest.fixture
def on_gpu() -> Any:
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} has no CUDA: install one that has")
    return lambda seed: draw(seed).cuda()


def test_cuda_tensors_give_what_arrays_do(session: Session, on_gpu: Any) -> None:
    for seed in range(3):
        (expected,) = session.run(draw(seed).numpy()).values()
        (found,) = session.run(on_gpu(seed)).values()
        assert isinstance(found, torch.Tensor) and found.is_cuda
        np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_runs_are_in_the_order_of_the_callers_stream(session: Session, on_gpu: Any) -> None:
    """Behind a long wait, on streams that the default one does not wait for."""
    expected = {seed: session.run(draw(seed).numpy()) for seed in range(4)}
    inputs = {seed: on_gpu(seed) for seed in range(4)}
    cuda: Any = torch.cuda  # without types
    streams = [cuda.Stream(), cuda.Stream()]
    kept = {}
    torch.cuda.synchronize()
    for seed, x in inputs.items():
        with torch.cuda.stream(streams[seed % 2]):
            cuda._sleep(20_000_000)
            late = x * 1.0  # made on this stream, behind the wait
            kept[seed] = {name: y + 0.0 for name, y in session.run(late).items()}
    torch.cuda.synchronize()
    for seed, result in kept.items():
        for name, found in result.items():
            np.testing.assert_array_equal(found.cpu().numpy(), expected[seed][name])


def test_outputs_survive_later_runs(session: Session, on_gpu: Any) -> None:
    (first,) = session.run(on_gpu(0)).values()
    kept = first.clone()
    for seed in range(1, 6):
        session.run(on_gpu(seed))
    torch.cuda.synchronize()
    assert torch.equal(first, kept)


def test_another_current_gpu_of_the_thread_does_not_matter(session: Session, on_gpu: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    (expected,) = session.run(on_gpu(0)).values()
    x = on_gpu(0)
    with torch.cuda.device(1):
        (found,) = session.run(x).values()
        assert torch.cuda.current_device() == 1
        with pytest.raises(InputError, match="found GPU 1"):
            session.run(x.to("cuda:1"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.half(), "expected dtype float32, found float16"),
        (lambda x: x.to(memory_format=torch.channels_last), "contiguous"),
        (lambda x: x.requires_grad_(), "detach"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(
    change: Any, reason: str, session: Session, on_gpu: Any
) -> None:
    with pytest.raises(InputError, match=reason):
        session.run(change(on_gpu(0)))
