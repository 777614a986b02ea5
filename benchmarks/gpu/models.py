"""Whole ResNet-50s: artifacts put together, outputs checked, and timed in turns with torch."""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.contents import Kit, Model
from benchmarks.gpu.data import NumpyMath, errors, network_arrays, uniform
from benchmarks.gpu.driver import Device
from benchmarks.gpu.kernels import TOLERANCE, Mismatch
from benchmarks.gpu.layers import CRASHED, describe
from benchmarks.gpu.timing import Replay, take_turns
from nmcompile import runtime
from nmcompile.errors import ArtifactError, NmcompileError
from nmcompile.kernels.sparse_tensor_core.packing import pack_bias, pack_weights
from nmcompile.kernels.sparse_tensor_core.tiles import Gemm
from nmcompile.runtime import manifest as manifests

Array = npt.NDArray[Any]
Step = Callable[[str], None]
SIZE, INPUT_SEED = 224, 7  # rows and columns of the input, and what it is drawn from
ROUNDS, ROUND_MS = 9, 25.0
OURS, EAGER, COMPILED = "nmcompile", "torch eager", "torch.compile max-autotune"


def model_input(batch: int) -> npt.NDArray[np.float32]:
    """Images, NCHW; those of a smaller batch are the first of a larger one."""
    shape = (batch, 3, SIZE, SIZE)
    return np.ascontiguousarray(
        uniform(INPUT_SEED, shape, 1.0).astype(np.float16).astype(np.float32)
    )


def digest(array: Array) -> str:
    """The sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def artifact_arrays(model: Model, pattern: str) -> dict[str, Array]:
    """The weights of an artifact, as its kernels read them.

    Raises:
        ArtifactError: an array is not the one that the compiler wrote.
    """
    drawn: dict[int, tuple[Array, Array]] = {}
    arrays: dict[str, Array] = {}
    for recipe in model.recipes:
        conv = recipe.conv
        if recipe.index not in drawn:
            shape = (conv.out_channels, conv.in_channels, *conv.kernel)
            drawn[recipe.index] = network_arrays(recipe.index, shape, pattern)
        weight, bias = drawn[recipe.index]
        gemm = Gemm(conv, recipe.config, recipe.method)
        array = pack_bias(bias, gemm) if recipe.kind == "bias" else pack_weights(weight, gemm)
        if pattern == model.pattern and digest(array) != recipe.digest:
            raise ArtifactError(
                f"{recipe.name}: expected an array of digest {recipe.digest}, found "
                f"{digest(array)}: this numpy ({np.__version__}) draws or packs otherwise than the "
                "one that made the kit; install that one, or report it"
            )
        arrays[recipe.name] = array
    return arrays


def write_model(kit: Kit, model: Model, pattern: str, path: Path) -> None:
    """The artifact that `nmc compile` writes for a model with this pattern."""
    where = f"{model.manifest} of the kit"
    manifest = manifests.decode(kit.read(model.manifest), where, manifests.WITHOUT)
    arrays = artifact_arrays(model, pattern)
    runtime.write_artifact(path, manifest, kit.read(model.library), arrays)


@dataclass(frozen=True)
class Request:
    """What to do with a model.

    compiled: also with torch's compiler. timed: or only checked. skip: contenders that crashed.
    """

    pattern: str
    compiled: bool
    timed: bool
    skip: Collection[str] = ()


def run_model(
    device: Device, kit: Kit, model: Model, request: Request, torch: Any, step: Step
) -> dict[str, Any]:
    """A row of the result: errors of our outputs, and times of all contenders.

    Raises:
        DriverError: one of them has lost the GPU; `step` has then been told which.
    """
    row: dict[str, Any] = {
        "model": "resnet50",
        "pattern": request.pattern,
        "batch": model.batch,
    }
    x = model_input(model.batch)
    expected = np.frombuffer(kit.read(model.references[request.pattern]), np.float32)
    expected = expected.reshape(model.batch, -1)
    makers: dict[str, Callable[[], Replay]] = {
        OURS: lambda: _ours(kit, model, request, x, expected, row, torch, step)
    }
    if torch is not None and request.timed:
        network = functools.cache(lambda: _network(torch, request.pattern))
        makers[EAGER] = lambda: _torch_replay(torch, EAGER, network(), x, expected, row)
        if request.compiled:
            makers[COMPILED] = lambda: _torch_replay(
                *(torch, COMPILED, torch.compile(network(), mode="max-autotune")),
                *(x, expected, row),
            )
    contenders: dict[str, dict[str, Any]] = {name: {"name": name} for name in makers}
    row["contenders"] = list(contenders.values())
    replays = {}
    for name, make in makers.items():
        if name in request.skip:
            contenders[name]["failure"] = CRASHED
            continue
        step(name)
        try:
            replays[name] = make()
        except Exception as error:  # of whatever TVM and torch raise: the others run all the same
            traceback.print_exc()
            device.synchronize()  # raises where the GPU is lost
            contenders[name]["failure"] = describe(error)
    if not request.timed:
        return row
    with device.use(0):  # torch's and TVM's stream unless told otherwise
        times = take_turns(device, replays, ROUNDS, ROUND_MS, lambda name: step(f"{name}: time"))
    for name, timing in times.items():
        step(f"{name}: synchronized")
        contenders[name].update(asdict(timing))
        contenders[name]["synced_ms"] = _synced_ms(device, replays[name])
        contenders[name]["images_per_s"] = 1e3 * model.batch / timing.ms
    return row


def _ours(
    kit: Kit,
    model: Model,
    request: Request,
    x: Array,
    expected: Array,
    row: dict[str, Any],
    torch: Any,
    step: Step,
) -> Replay:
    """Our model, checked; its input is float32 as in the model, in the GPU's memory with torch."""
    step(f"{OURS}: artifact")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as folder:
        path = Path(folder, "model.nmc")
        write_model(kit, model, request.pattern, path)
        row["artifact_s"] = time.perf_counter() - start
        step(f"{OURS}: load")
        session = runtime.load(path)
    step(f"{OURS}: run")
    (found,) = session.run(x).values()
    wrong = int(np.count_nonzero(~np.isfinite(found)))
    row["correct"] = not wrong
    if wrong:
        raise Mismatch(f"{wrong} of {found.size} outputs are not finite")
    norm, largest = errors(NumpyMath(), found, expected)
    row.update(error_norm=norm, error_max=largest)
    row["correct"] = bool(norm < TOLERANCE and largest < TOLERANCE)
    if not request.timed:
        return Replay(lambda: _drop(session.run(x)), 1, "with copies")
    step(f"{OURS}: profile")
    try:
        row["profile"] = [asdict(time) for time in session.profile(x, 3)]
    except NmcompileError as error:
        row["profile_missing"] = str(error)
    if torch is None:
        return Replay(lambda: _drop(session.run(x)), 1, "with copies")
    images = torch.from_numpy(x).cuda()
    session.run(images)
    return Replay(lambda: _drop(session.run(images)), 1, "loop")


def _network(torch: Any, pattern: str) -> Any:
    network = importlib.import_module("benchmarks.gpu.network")
    return network.build(pattern).cuda().half().to(memory_format=torch.channels_last)


def _torch_replay(
    torch: Any, name: str, network: Any, x: Array, expected: Array, row: dict[str, Any]
) -> Replay:
    """A network that gets its input as float16 and channels last already."""
    torch.backends.cudnn.benchmark = True
    images = torch.from_numpy(x).cuda().half().contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()

    def call() -> Any:
        with torch.inference_mode():
            return network(images)

    for _ in range(3):
        out = call()
    torch.cuda.synchronize()
    row[f"{name}: ready_s"] = time.perf_counter() - start
    error, _ = errors(NumpyMath(), out.float().cpu().numpy(), expected)
    row[f"{name}: error_norm"] = error if math.isfinite(error) else None
    return Replay(lambda: _drop(call()), 1, "loop")


def _drop(result: Any) -> None:
    """A launch has no result."""


def _synced_ms(device: Device, replay: Replay) -> float:
    """Milliseconds of one run that is waited for, by the host's clock."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        replay.launch()
        device.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)
