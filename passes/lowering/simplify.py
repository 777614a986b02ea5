"""Bring an imported Relax module into the few forms that the kernel matcher knows.

1. gathers and constants without elements are made safe, see `corrections/safe.py`;
2. batch norms that no pass folded become arithmetic;
3. what depends on constants only is computed;
4. bindings to tuples and aliases are looked through, dead ones dropped.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nmcompile.passes.lowering.constants import fold_views
from nmcompile.passes.lowering.corrections.safe import make_safe

IRModule = Any


def simplify(module: IRModule) -> IRModule:
    """The same function in canonical form."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),  # what nobody reads is not to be computed
            relax.transform.FoldConstant(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    # Once more for the indices and shapes that folding has made known.
    folded = passes(fold_views(make_safe(module, limit=False)))
    return make_safe(folded, limit=True)
