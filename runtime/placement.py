"""Where the tensors of a session lie: how inputs get there, and outputs back to the caller."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nmcompile.errors import DeviceError, InputError
from nmcompile.runtime.cuda import Cuda
from nmcompile.runtime.format import ALIGNMENT
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.specs import DTYPES, TensorSpec
from nmcompile.runtime.tensors import (
    check,
    convert,
    from_gpu,
    from_numpy,
    over,
    plain,
    to_gpu,
    to_numpy,
)

LARGE = 1 << 18  # bytes from which outputs are not copied
MOST_LENT = 1 << 27  # bytes of such that may be alive: the VM never gives back what it has had
_CUDA = 2  # DLPack's device type
_DEFAULT_STREAM = 0  # CUDA's legacy one
_DLPACK_DEFAULT_STREAM = 1  # and what DLPack calls it
_DLPACK_IN_ORDER = -1  # the producer has nothing to wait for, as the consumer is on its stream
_DLPACK_VERSION = (1, 0)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Transfer:
    """The inputs of one run as the library takes them, and what it does with an output.

    stream: that the run is launched on, of a GPU.
    """

    arguments: list[Any]
    give_back: Callable[[Any], Any]
    stream: int = _DEFAULT_STREAM


class Placement(Protocol):
    """The memory that a library reads and writes."""

    def place(self, array: Array) -> Any:
        """A weight, there.

        Raises:
            DeviceError: there is no room for it.
        """

    def freeing(self) -> AbstractContextManager[object]:
        """Within it, tensors may be let go of that lie there."""

    def transfer(
        self, specs: Sequence[TensorSpec], values: Sequence[Any], weights: frozenset[int]
    ) -> AbstractContextManager[Transfer]:
        """Bring the caller's values there for one run, which happens within.

        Args:
            specs: of the inputs.
            values: the caller's.
            weights: their addresses, which no output that is given back may have.

        Raises:
            InputError: a value has another shape or dtype, cannot be read, or lies elsewhere.
            DeviceError: the device fails.
        """


class CpuPlacement:
    """CPU memory: values by reference where alignment allows, outputs as arrays, large ones too."""

    def __init__(self, native: NativeRuntime) -> None:
        self._native = native
        self._lent: dict[int, int] = {}

    def place(self, array: Array) -> Any:
        """See `Placement`."""
        return from_numpy(self._native, array)

    def freeing(self) -> AbstractContextManager[object]:
        """See `Placement`."""
        return nullcontext()

    @contextmanager
    def transfer(
        self, specs: Sequence[TensorSpec], values: Sequence[Any], weights: frozenset[int]
    ) -> Iterator[Transfer]:
        """See `Placement`."""
        arguments = [
            convert(self._native, spec, value) for spec, value in zip(specs, values, strict=True)
        ]
        taken = set[int]()

        def give_back(tensor: Any) -> Any:
            """A large output itself, where its memory is nothing else's; of others a copy.

            A copy of 20 MB takes 3 ms, most of it until the system has found the pages; the
            allocator of the VM has them from the run before.
            """
            nbytes = math.prod(tensor.shape) * DTYPES[str(tensor.dtype)]
            if nbytes < LARGE or not tensor.is_contiguous():
                return to_numpy(self._native, tensor)
            # Other threads come and go in between: a little more may be lent.
            if sum(list(self._lent.values())) + nbytes > MOST_LENT:
                return to_numpy(self._native, tensor)
            if not taken:
                taken.update(each.data_ptr() for each in arguments)
            address = tensor.data_ptr()
            if address in taken or address in weights:
                return to_numpy(self._native, tensor)
            taken.add(address)
            return over(tensor, self._lent)

        yield Transfer(arguments, give_back)


@dataclass(frozen=True)
class _Caller:
    """Who gave tensors in the GPU's memory.

    stream: that its own work is launched on.
    export: makes a tensor of its kind of one that has `__dlpack__`.
    ordered: whether it uses what it gets on that stream, so that nobody has to wait for a run.
    """

    stream: int
    export: Callable[[Any], Any]
    ordered: bool


class GpuPlacement:
    """The memory of GPU 0.

    Tensors that lie there are read as they are, on the caller's stream, and outputs stay there; of
    inputs in CPU memory alone, outputs come back as arrays.
    """

    def __init__(self, native: NativeRuntime, cuda: Cuda) -> None:
        self._native, self._cuda = native, cuda

    def place(self, array: Array) -> Any:
        """See `Placement`."""
        default = _DEFAULT_STREAM
        with self._cuda.launching_on(default), self._native.on_stream(default):
            try:
                return to_gpu(self._native, from_numpy(self._native, array))
            except RuntimeError as error:
                raise DeviceError(
                    f"the GPU cannot take {array.nbytes} bytes of weights: {error}; free some of "
                    "its memory, see `nvidia-smi`"
                ) from error

    def freeing(self) -> AbstractContextManager[object]:
        """See `Placement`; the driver frees nothing while another thread captures a graph."""
        return self._cuda.launching_on(_DEFAULT_STREAM)

    @contextmanager
    def transfer(
        self, specs: Sequence[TensorSpec], values: Sequence[Any], weights: frozenset[int]
    ) -> Iterator[Transfer]:
        """See `Placement`."""
        given = [value for value in values if is_on_gpu(value)]
        for spec, value in zip(specs, values, strict=True):
            if is_on_gpu(value):
                _check_sharable(spec, value)
        caller = _caller_of(given[0]) if given else None
        stream = caller.stream if caller else _DEFAULT_STREAM
        arguments: list[Any] = []
        with self._cuda.launching_on(stream), self._native.on_stream(stream):
            try:
                for spec, value in zip(specs, values, strict=True):
                    arguments.append(
                        _share(self._native, spec, value, stream)
                        if is_on_gpu(value)
                        else to_gpu(self._native, convert(self._native, spec, value))
                    )
                if caller is None:
                    yield Transfer(arguments, lambda tensor: from_gpu(self._native, tensor), stream)
                    return
                taken = {*weights, *(tensor.data_ptr() for tensor in arguments)}

                def give_back(tensor: Any) -> Any:
                    return caller.export(self._own(tensor, taken, stream))

                yield Transfer(arguments, give_back, stream)
                # Copies of inputs are freed now, and others may look at an output on any stream.
                if not caller.ordered or len(given) < len(values):
                    self._cuda.synchronize(stream)
            except RuntimeError as error:
                raise DeviceError(
                    f"the GPU cannot run the model: {error}; where memory is short, free some or "
                    "compile the model for a smaller batch"
                ) from error
            finally:
                arguments.clear()  # while no other thread captures: see `freeing`

    def _own(self, tensor: Any, taken: set[int], stream: int) -> Any:
        """A tensor whose memory is no input's, weight's or other output's."""
        if tensor.data_ptr() not in taken:
            taken.add(tensor.data_ptr())
            return tensor
        native, shape = self._native, tuple(tensor.shape)
        own = native.allocate(native.shape(shape), tensor.dtype, native.device("cuda", 0), None)
        nbytes = math.prod(shape) * DTYPES[str(tensor.dtype)]
        self._cuda.copy(own.data_ptr(), tensor.data_ptr(), nbytes, stream)
        return own


def is_on_gpu(value: Any) -> bool:
    """Whether a value says by DLPack that it is in the memory of an NVIDIA GPU."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) == _CUDA
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False  # `convert` says what is wrong with it


def _torch_of(value: Any) -> Any:
    """The module torch for a tensor of torch's, else None."""
    torch = sys.modules.get("torch")  # whoever has a tensor of it has imported it
    return torch if torch is not None and isinstance(value, torch.Tensor) else None


def _caller_of(value: Any) -> _Caller:
    torch = _torch_of(value)
    if torch is not None:
        return _Caller(torch.cuda.current_stream(0).cuda_stream, torch.from_dlpack, ordered=True)
    namespace = getattr(value, "__array_namespace__", None)
    export = namespace().from_dlpack if namespace is not None else lambda tensor: tensor
    return _Caller(_DEFAULT_STREAM, export, ordered=False)


def _check_sharable(spec: TensorSpec, value: Any) -> None:
    """Refuse what lies on another GPU, or asks for gradients.

    Raises:
        InputError: it does.
    """
    index = int(value.__dlpack_device__()[1])
    if index != 0:
        raise InputError(
            f"input {spec.name!r}: expected memory of GPU 0, which the model runs on, found GPU "
            f"{index}; copy it there first, e.g. x.to('cuda:0'), or choose the GPU with "
            "CUDA_VISIBLE_DEVICES"
        )
    if getattr(value, "requires_grad", False):
        raise InputError(
            f"input {spec.name!r}: this tensor requires gradients, and a compiled model has none; "
            "pass x.detach()"
        )
    if plain(value) is not value:
        raise InputError(
            f"input {spec.name!r}: this tensor is a negative or conjugate view of what its memory "
            "holds; pass x.resolve_conj().resolve_neg()"
        )


def _share(native: NativeRuntime, spec: TensorSpec, value: Any, stream: int) -> Any:
    """A tensor over the memory of `value`, whose own work `stream` waits for.

    Raises:
        InputError: the value has another shape, dtype or layout in memory, or is not handed out.
    """
    consumer = stream or _DLPACK_DEFAULT_STREAM
    if _torch_of(value) is not None:
        consumer = _DLPACK_IN_ORDER
    try:
        try:
            capsule = value.__dlpack__(stream=consumer, max_version=_DLPACK_VERSION)
        except TypeError:  # from before versions
            capsule = value.__dlpack__(stream=consumer)
        tensor = native.from_dlpack(capsule)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"input {spec.name!r}: this {type(value).__name__} cannot be shared through DLPack "
            f"({error}); pass a plain CUDA tensor of shape {spec.shape} and dtype {spec.dtype}"
        ) from error
    check(spec, tuple(tensor.shape), str(tensor.dtype))
    if not tensor.is_contiguous():
        raise InputError(
            f"input {spec.name!r}: expected values without gaps in the order of their shape, found "
            f"strides {tuple(tensor.strides)}; pass x.contiguous()"
        )
    if tensor.data_ptr() % ALIGNMENT:
        raise InputError(
            f"input {spec.name!r}: expected memory that begins at a multiple of {ALIGNMENT} bytes, "
            f"found {tensor.data_ptr() % ALIGNMENT} bytes behind one; pass x.clone()"
        )
    return tensor
