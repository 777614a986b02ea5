"""Failures that are neither a defect of nmcompile nor found by a check: say what they come from."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from nmcompile.errors import DeviceError, ModelError, NmcompileError

_P = ParamSpec("_P")
_R = TypeVar("_R")

COMPILE = "compile"
EXTRAS = {
    COMPILE: ("onnx", "onnx_ir", "onnxscript", "tvm", "ziglang"),
    "torch": ("torch",),
    "bench": ("jinja2", "matplotlib", "msgspec", "openvino", "vl_convert"),
    "quantize": ("onnxruntime", "PIL"),
    "devices": ("cloudpickle", "psutil", "tornado"),
}
"""What pip installs beside the runtime, and the packages that each brings; all bring `COMPILE`."""

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_SAYS_FULL = re.compile("|".join(os.strerror(number) for number in _FULL))
_SAYS_MEMORY = re.compile(
    rf"bad_alloc|out of memory|virtual memory exhausted|{os.strerror(errno.ENOMEM)}", re.IGNORECASE
)


def explained(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """What a function that takes a model first raises for want of memory or space, or for a model
    that breaks ONNX's rules, becomes an error of ours; other exceptions stay as they are.
    """  # noqa: D205

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except (NmcompileError, KeyboardInterrupt):
            raise
        except Exception as error:
            model = args[0] if args else kwargs.get("model")
            reason = machine_reason(error) or missing_package(error) or _model_reason(model)
            if reason is None:
                raise
            raise reason from error

    return wrapper


def machine_reason(error: BaseException) -> NmcompileError | None:
    """An error that names what this machine lacks, if that is why another was raised."""
    text = str(error)
    if isinstance(error, MemoryError) or _SAYS_MEMORY.search(text):
        return DeviceError(
            f"memory is too small for this ({_first_line(error)}); free some, raise the limit "
            "(ulimit -v), or compile the model for a smaller batch"
        )
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or _SAYS_FULL.search(text):
        return DeviceError(
            f"a file could not be written ({_first_line(error)}); free some space, raise the limit "
            "(ulimit -f), or point TMPDIR at a larger folder"
        )
    return None


def missing_package(error: BaseException, room: str = "") -> NmcompileError | None:
    """An error that names what to install, if a package of one of the extras is missing.

    Args:
        error: what was raised.
        room: the extra that is needed anyway, of which `COMPILE` is a part.
    """
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    if extra == COMPILE and room in EXTRAS:
        extra = room
    return DeviceError(
        f"this needs {package}, which is not installed here: pip install 'nmcompile[{extra}]'"
    )


def _model_reason(model: Any) -> NmcompileError | None:
    """An error that names which rule of ONNX's a model breaks, if it breaks one."""
    import onnx

    with contextlib.suppress(NmcompileError, OSError):
        proto = model
        if isinstance(model, str | os.PathLike):
            proto = onnx.load(os.fspath(model), load_external_data=False)
        if not isinstance(proto, onnx.ModelProto):
            return None
        shaped = onnx.ModelProto()
        shaped.CopyFrom(proto)
        for output in shaped.graph.output:
            # The standard wants shapes here that it infers itself; no model fails for that.
            output.type.tensor_type.shape.SetInParent()
        for check in (
            lambda: onnx.checker.check_model(shaped),
            lambda: onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True),
        ):
            try:
                check()
            except Exception as error:
                title = "the ONNX model" if isinstance(model, onnx.ModelProto) else model
                return ModelError(
                    f"{title} is not a valid ONNX model: {_first_line(error)}; export it again"
                )
    return None


def _first_line(error: BaseException) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
