"""What is compared: one row for each trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Case:
    """A method with its settings, and whose code it is held against.

    n, m: of the pattern N:M, or n of 1xN.
    start, end: epochs of LBC's and SUBP's schedules.
    """

    name: str
    method: str
    repository: str
    n: int
    m: int = 0
    density: float = 1.0
    start: int = 0
    end: int = 6
    criterion: Literal["l1", "l2", "bpar"] = "l1"
    schedule: Literal["linear", "cos", "exp", "cubic"] = "cubic"
    rearrange: bool = False
    seed: int = 3


SPRE, SUBP, ONE_BY_N = "zyxxmu/SpRE", "JingyangXiang/SUBP", "lmbxmu/1xN"

CASES = (
    Case("srste-2-4", "srste", "aojunzz/NM-sparsity", 2, 4),
    Case("srste-1-8", "srste", "aojunzz/NM-sparsity", 1, 8),
    Case("srste-flat-1-4", "srste flat", "AojunZhou/NM-sparsity", 1, 4),
    Case("lbc-2-4", "lbc", "zyxxmu/LBC", 2, 4),
    Case("lbc-1-8", "lbc", "zyxxmu/LBC", 1, 8),
    Case("spre-srste-2-4", "spre", SPRE, 2, 4),
    Case("spre-srste-1-8", "spre", SPRE, 1, 8),
    Case("spre-asp-1-4", "spre over asp", SPRE, 1, 4),
    Case("asp-1-4", "asp", SPRE, 1, 4),
    Case("asp-2-4", "apex asp", "NVIDIA/apex", 2, 4),
    Case("one-by-n", "one by n", ONE_BY_N, 4, density=0.5),
    Case("subp-l1-cubic", "subp", SUBP, 4, density=0.25),
    Case("subp-l2-cos", "subp", SUBP, 8, density=0.5, criterion="l2", schedule="cos", start=1),
    Case("subp-bpar-linear", "subp", SUBP, 2, density=0.3, criterion="bpar", schedule="linear"),
    Case("subp-l1-exp", "subp", SUBP, 16, density=0.2, schedule="exp", start=1, end=7),
)
