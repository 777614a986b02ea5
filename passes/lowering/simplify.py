"""Bring an imported Relax module into the few forms that the kernel matcher knows.

1. batch norms that no pass folded become arithmetic;
2. what depends on constants only is computed;
3. bindings to tuples and aliases are looked through, dead ones dropped.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nmcompile.passes.lowering.constants import fold_views

IRModule = Any


def simplify(module: IRModule) -> IRModule:
    """The same function in canonical form."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    return passes(fold_views(module))
