"""What this machine's NVIDIA GPU can do, as the driver's own library reports it.

Everything is asked before TVM's CUDA runtime is loaded, which does not explain itself where it
finds no driver. No function here was run on a machine with a GPU yet: tests use a driver of theirs.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nmcompile.errors import DeviceError

DRIVER = "libcuda.so.1"  # comes with the driver, not with the CUDA toolkit
CUDA = 13  # major version of the CUDA runtime that TVM 0.27 is linked with
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Capability:
    """The compute capability that a kind's kernels are made for, and GPUs that have it.

    also: other capabilities that run them.
    """

    major: int
    minor: int
    examples: str
    also: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.major}.{self.minor} ({self.examples})"

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """The compute capabilities that run the kernels."""
        return ((self.major, self.minor), *self.also)

    def runs_on(self, device: "Gpu") -> bool:
        """Whether a GPU runs the kernels."""
        return (device.major, device.minor) in self.versions


# Machine code for 8.0 would load on 8.6 and 8.9, but its tiles are sized for the 164 KiB of shared
# memory of an A100's SM: hardly a model has none above the 99 KiB that a block can have there, and
# what would fit leaves half of an SM idle. 8.6 and 8.9 have the same limits, so the same tiles.
KINDS: Mapping[str, Capability] = {
    "sm_80": Capability(8, 0, "A100, A30"),
    "sm_86": Capability(8, 6, "A10, RTX 30xx", also=((8, 9),)),
    "sm_89": Capability(8, 9, "L4, L40, RTX 40xx"),
    "sm_90a": Capability(9, 0, "H100, H200"),
}


@dataclass(frozen=True)
class Gpu:
    """The first GPU of the driver's: its name, compute capability, memory in bytes."""

    name: str
    major: int
    minor: int
    memory: int


def host() -> Gpu:
    """Return what the driver says of GPU 0.

    Raises:
        DeviceError: there is no driver, no GPU, or the driver does not answer.
    """
    driver, device = first_device()
    name = ctypes.create_string_buffer(256)
    ask(driver, "cuDeviceGetName", name, len(name), device)
    version = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(version, (_MAJOR, _MINOR), strict=True):
        ask(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    memory = ctypes.c_size_t()
    ask(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return Gpu(
        name.value.decode(errors="replace"), version[0].value, version[1].value, memory.value
    )


def first_device() -> tuple[Any, Any]:
    """The driver's library, initialised, and its handle of GPU 0.

    Raises:
        DeviceError: as `host`.
    """
    driver = _driver()
    ask(driver, "cuInit", 0)
    count = ctypes.c_int()
    ask(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise DeviceError(
            "the NVIDIA driver reports no GPU; expected one: check `nvidia-smi`, and that "
            "CUDA_VISIBLE_DEVICES does not hide it"
        )
    device = ctypes.c_int()
    ask(driver, "cuDeviceGet", ctypes.byref(device), 0)
    return driver, device


def driver_version() -> tuple[int, int]:
    """The newest CUDA, major and minor version, that the driver supports.

    Raises:
        DeviceError: there is no driver, or it does not answer.
    """
    version = ctypes.c_int()
    ask(_driver(), "cuDriverGetVersion", ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def kind_of(device: Gpu) -> str | None:
    """The kind that is made for a GPU, None where there is none."""
    for kind, wanted in KINDS.items():
        if (device.major, device.minor) == (wanted.major, wanted.minor):
            return kind
    return None


def require(kind: str, nbytes: int, what: str) -> None:
    """Check that this machine's GPU runs the machine code of `kind`.

    Args:
        kind: a key of `KINDS`.
        nbytes: memory for weights and activations.
        what: what needs it, for the message.

    Raises:
        DeviceError: says what is needed and what was found.
    """
    wanted = KINDS[kind]
    try:
        gpu = host()
    except DeviceError as error:
        raise DeviceError(
            f"{what} needs an NVIDIA GPU of compute capability {wanted}, and its driver: {error}"
        ) from error
    if not wanted.runs_on(gpu):
        here = kind_of(gpu)
        way_out = f"with `nmc compile --target {here}`" if here else "see `nmc targets`"
        raise DeviceError(
            f"{what} needs an NVIDIA GPU of compute capability {wanted}, found {gpu.name} of "
            f"{gpu.major}.{gpu.minor}; compile the model for it, {way_out}"
        )
    supported = driver_version()
    if supported[0] < CUDA:
        raise DeviceError(
            f"{what} needs an NVIDIA driver for CUDA {CUDA} or later (version 580), found one for "
            f"CUDA {supported[0]}.{supported[1]}; install a newer driver"
        )
    if nbytes > gpu.memory:
        raise DeviceError(
            f"{what} needs {nbytes} bytes of GPU memory, {gpu.name} has {gpu.memory}; use another "
            "GPU, or compile the model for a smaller batch"
        )


def _driver() -> Any:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise DeviceError(
            f"found no NVIDIA driver ({DRIVER} cannot be loaded); install it, or compile the model "
            "for a CPU (`nmc compile --target avx512`)"
        ) from error


def ask(driver: Any, function: str, *arguments: Any) -> None:
    """Call a function of the driver's library.

    Raises:
        DeviceError: it answers with an error.
    """
    status = getattr(driver, function)(*arguments)
    if status == _OUT_OF_MEMORY:
        raise DeviceError(
            f"the memory of the GPU is full, as the NVIDIA driver answers {function}; see "
            "`nvidia-smi` for who uses it"
        )
    if status:
        raise DeviceError(
            f"the NVIDIA driver answers {function} with error {status}; check `nvidia-smi`, and "
            "whether the driver needs a restart"
        )
