"""nmcompile: compiles trained N:M and 1xN sparse CNNs and runs them.

Names are loaded on first use, so that `import nmcompile.runtime` stays small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nmcompile.version import VERSION

if TYPE_CHECKING:
    from nmcompile import devices, errors, runtime, train
    from nmcompile.bundle import Bundle, write_bundle
    from nmcompile.compiler import CompileResult, compile, enforce, fold
    from nmcompile.inspection import inspect
    from nmcompile.quantization import MaxLoss, Quantization, QuantizeResult, quantize
    from nmcompile.reports import InspectionReport, LayerReport
    from nmcompile.sparsity import Pruning
    from nmcompile.tuning.request import Tuning
    from nmcompile.updating import update

__version__ = VERSION
__all__ = [
    "Bundle",
    "CompileResult",
    "InspectionReport",
    "LayerReport",
    "MaxLoss",
    "Pruning",
    "Quantization",
    "QuantizeResult",
    "Tuning",
    "compile",
    "devices",
    "enforce",
    "errors",
    "fold",
    "inspect",
    "quantize",
    "runtime",
    "train",
    "update",
    "write_bundle",
]

_MODULES = ("devices", "errors", "runtime", "train")

_HOMES = {
    "Bundle": "nmcompile.bundle",
    "CompileResult": "nmcompile.compiler",
    "InspectionReport": "nmcompile.reports",
    "LayerReport": "nmcompile.reports",
    "MaxLoss": "nmcompile.quantization",
    "Pruning": "nmcompile.sparsity",
    "Quantization": "nmcompile.quantization",
    "QuantizeResult": "nmcompile.quantization",
    "Tuning": "nmcompile.tuning.request",
    "compile": "nmcompile.compiler",
    "enforce": "nmcompile.compiler",
    "fold": "nmcompile.compiler",
    "inspect": "nmcompile.inspection",
    "quantize": "nmcompile.quantization",
    "update": "nmcompile.updating",
    "write_bundle": "nmcompile.bundle",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"nmcompile.{name}")
    if name in _HOMES:
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            from nmcompile.explain import missing_package

            if (reason := missing_package(error)) is None:
                raise
            raise reason from error
    raise AttributeError(f"module nmcompile has no attribute {name}")
