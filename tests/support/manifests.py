"""What the runtime's tests say of the small libraries that they write into artifacts."""

from typing import Any

import numpy as np

from nmcompile.runtime import Call, Manifest, ModelInfo, Producer, TargetInfo, TensorSpec
from nmcompile.targets import find_target

FEATURES = find_target("avx512").cpu_features
ROWS, COLUMNS = 8, 16
SHAPE = (ROWS, COLUMNS)
X = TensorSpec("x", SHAPE, "float32")
Y = TensorSpec("y", SHAPE, "float32")


def manifest(
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (Y,),
    calls: tuple[Call, ...] = (),
    cpu_features: tuple[str, ...] = FEATURES,
    kind: str = "avx512",
    entry: str = "main",
    prepare: str = "",
) -> Manifest:
    return Manifest(
        producer=Producer("0.1.0", "0.27.0", "0.1.14"),
        target=TargetInfo(kind, "x86-64-v4", cpu_features),
        inputs=inputs,
        outputs=outputs,
        model=ModelInfo("tiny", "ab" * 32),
        layers=({"name": "conv1", "sparse": True, "density": 0.5, "reason": None},),
        calls=calls,
        workspace_bytes=4096,
        entry=entry,
        prepare=prepare,
    )


def aligned(shape: tuple[int, ...], shift: int = 0) -> np.ndarray[Any, Any]:
    """Uninitialised float32 array that begins `shift` bytes after a 64-byte boundary."""
    nbytes = int(np.prod(shape)) * 4
    memory = np.empty(nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    return memory[start : start + nbytes].view(np.float32).reshape(shape)
