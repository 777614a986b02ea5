"""Sparsity patterns of weights: what they are, whether they hold, how to impose and store them."""

from nmcompile.sparsity.check import CheckResult, check, excess, stored_share
from nmcompile.sparsity.detect import Detection, detect
from nmcompile.sparsity.eligible import LayerFacts, left_out
from nmcompile.sparsity.pack import RowLists, pack_rows, unpack_rows
from nmcompile.sparsity.pattern import (
    NM,
    Dense,
    OneByN,
    Pattern,
    Unstructured,
    Wanted,
    one_density,
    parse_pattern,
    parse_wanted,
)
from nmcompile.sparsity.project import energy_kept, project
from nmcompile.sparsity.pruning import PROJECT, VERIFY, Pruning

__all__ = [
    "NM",
    "PROJECT",
    "VERIFY",
    "CheckResult",
    "Dense",
    "Detection",
    "LayerFacts",
    "OneByN",
    "Pattern",
    "Pruning",
    "RowLists",
    "Unstructured",
    "Wanted",
    "check",
    "detect",
    "energy_kept",
    "excess",
    "left_out",
    "one_density",
    "pack_rows",
    "parse_pattern",
    "parse_wanted",
    "project",
    "stored_share",
    "unpack_rows",
]
