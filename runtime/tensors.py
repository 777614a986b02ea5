"""Arrays into TVM tensors and back: by reference where DLPack and alignment allow, else by copy."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nmcompile.errors import InputError
from nmcompile.runtime.format import ALIGNMENT
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.specs import DTYPES, TensorSpec, numpy_dtype

_HOST_DEVICES = (1, 3)  # DLPack: CPU memory, and CPU memory pinned for CUDA


def from_numpy(native: NativeRuntime, array: np.ndarray[Any, Any]) -> Any:
    """Return a TVM tensor over `array`; copies unless it is aligned, contiguous and writeable.

    (DLPack cannot pass on that an array is read-only, hence the copy of those.)
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0):
        array = _aligned_copy(array)
    # numpy's DLPack does not know this dtype. (The name of a dtype takes microseconds.)
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        return native.reinterpret(native.from_dlpack(array.view(np.uint16)), "bfloat16")
    return native.from_dlpack(array)


class _Memory:
    """The memory of a TVM tensor, for numpy: what is made of it keeps the tensor alive.

    lent: bytes by owner, of those that are alive.
    """

    def __init__(self, tensor: Any, dtype: "np.dtype[Any]", lent: dict[int, int]) -> None:
        self._tensor, self._lent = tensor, lent
        lent[id(self)] = math.prod(tensor.shape) * dtype.itemsize
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": dtype.str,
            "data": (tensor.data_ptr(), False),
        }

    def __del__(self) -> None:
        self._lent.pop(id(self), None)


def over(tensor: Any, lent: dict[int, int]) -> np.ndarray[Any, Any]:
    """Return a contiguous TVM tensor's values as an array over its memory, which may be written.

    Args:
        tensor: on the CPU.
        lent: has an entry with its bytes for as long as the array, or a view of it, is alive.
    """
    dtype = numpy_dtype(str(tensor.dtype))
    if str(tensor.dtype) == "bfloat16":
        return np.asarray(_Memory(tensor, np.dtype(np.uint16), lent)).view(dtype)
    return np.asarray(_Memory(tensor, dtype, lent))


def to_numpy(native: NativeRuntime, tensor: Any) -> np.ndarray[Any, Any]:
    """Return a TVM tensor's values as an array with memory of its own: a copy.

    An output may alias an input, a weight or another output.
    """
    name = str(tensor.dtype)
    if name == "bfloat16":
        words = np.from_dlpack(native.reinterpret(tensor, "uint16"))
        return words.copy().view(numpy_dtype(name))
    return np.from_dlpack(tensor).copy()


def to_gpu(native: NativeRuntime, tensor: Any, device: str = "cuda") -> Any:
    """Return a copy of a contiguous tensor of the CPU in the memory of GPU 0."""
    result = native.allocate(
        native.shape(tuple(tensor.shape)), tensor.dtype, native.device(device, 0), None
    )
    nbytes = math.prod(tuple(tensor.shape)) * DTYPES[str(tensor.dtype)]
    native.copy_from_bytes(result, ctypes.c_void_p(tensor.data_ptr()), nbytes)
    return result


def from_gpu(native: NativeRuntime, tensor: Any) -> np.ndarray[Any, Any]:
    """Return a GPU tensor's values, once everything that was launched before is done."""
    array = np.empty(tuple(tensor.shape), numpy_dtype(str(tensor.dtype)))
    native.copy_to_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return array


def convert(native: NativeRuntime, spec: TensorSpec, value: Any) -> Any:
    """Return the caller's `value` for the input `spec` as a TVM tensor.

    A numpy array or anything with `__dlpack__` in CPU memory. C-contiguous values whose memory
    begins on a 64-byte boundary are passed by reference, others are copied.

    Raises:
        InputError: the value has another shape or dtype, sits on another device, or is no array.
    """
    if isinstance(value, np.ndarray):
        if value.shape != spec.shape or value.dtype != numpy_dtype(spec.dtype):
            check(spec, value.shape, value.dtype.name if value.dtype.isnative else str(value.dtype))
        return from_numpy(native, value)
    tensor = _from_dlpack(native, spec, value)
    check(spec, tuple(tensor.shape), str(tensor.dtype))
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    if spec.dtype == "bfloat16":
        if not tensor.is_contiguous():
            raise InputError(
                f"input {spec.name!r}: expected bfloat16 values without gaps, found strides "
                f"{tuple(tensor.strides)}; make the tensor contiguous first"
            )
        return from_numpy(native, to_numpy(native, tensor))
    return native.from_dlpack(_aligned_copy(np.from_dlpack(tensor)))


def check(spec: TensorSpec, shape: Sequence[int], dtype: str) -> None:
    """Compare an input's shape and dtype with what the artifact takes.

    Raises:
        InputError: they differ; nothing is cast or reshaped silently.
    """
    if tuple(shape) != spec.shape:
        raise InputError(
            f"input {spec.name!r}: expected shape {spec.shape}, found {tuple(shape)}; reshape it, "
            "or compile the model for this shape"
        )
    if dtype != spec.dtype:
        raise InputError(
            f"input {spec.name!r}: expected dtype {spec.dtype}, found {dtype}; convert it first, "
            f"e.g. x.astype({spec.dtype!r})"
        )


def plain(value: Any) -> Any:
    """A tensor whose memory holds what it says.

    torch exports tensors with a gradient only when they are detached, and negative or conjugate
    views, which are a bit beside the memory, as what lies there.
    """
    if getattr(value, "requires_grad", False):
        value = value.detach()
    for bit in ("conj", "neg"):
        marked = getattr(value, f"is_{bit}", None)
        if marked is not None and marked():
            value = getattr(value, f"resolve_{bit}")()
    return value


def _from_dlpack(native: NativeRuntime, spec: TensorSpec, value: Any) -> Any:
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r}: expected a numpy array or a tensor with __dlpack__, found "
            f"{type(value).__name__}; pass numpy.asarray(x, {spec.dtype!r})"
        )
    value = plain(value)
    try:
        if hasattr(value, "__dlpack_device__"):
            device = tuple(value.__dlpack_device__())
            if device[0] not in _HOST_DEVICES:
                raise InputError(
                    f"input {spec.name!r}: expected CPU memory, found DLPack device "
                    f"{tuple(map(int, device))}; copy it to the CPU first, e.g. x.cpu()"
                )
        return native.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"input {spec.name!r}: this {type(value).__name__} cannot be shared through DLPack "
            f"({error}); pass a plain CPU tensor of shape {spec.shape} and dtype {spec.dtype}"
        ) from error


def _aligned_copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    nbytes = array.nbytes
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    result: np.ndarray[Any, Any] = (
        memory[start : start + nbytes].view(array.dtype).reshape(array.shape)
    )
    result[...] = array
    return result
