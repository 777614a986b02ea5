"""Running and reading Relax modules, for the tests of the front ends."""

from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax

from tests.support.seed_modules import Array


def run_relax(module: Any, x: torch.Tensor) -> Array:
    """The first output, compiled by TVM alone for a plain CPU."""
    compiled = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(compiled, tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(x.numpy()))
    return np.asarray((result if hasattr(result, "numpy") else result[0]).numpy())


def relax_constants(module: Any) -> set[bytes]:
    """The contents of all tensor constants."""
    found: set[bytes] = set()

    def visit(expression: Any) -> None:
        value: Any = getattr(expression, "value", None)
        if hasattr(value, "numpy"):
            found.add(value.numpy().tobytes())

    relax.analysis.post_order_visit(module["main"], visit)
    return found
