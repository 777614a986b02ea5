"""Training methods whose models nmcompile deploys. Needs torch; see `nmcompile.train.method`."""

from nmcompile.train.checkpoint import CheckpointReport, load_checkpoint
from nmcompile.train.lbc import LBC
from nmcompile.train.method import Method, PreparedLayer
from nmcompile.train.one_shot import ASP, Magnitude, OneByN
from nmcompile.train.spre import SpRe, SpReConv2d
from nmcompile.train.srste import SRSTE
from nmcompile.train.subp import SUBP

__all__ = [
    "ASP",
    "LBC",
    "SRSTE",
    "SUBP",
    "CheckpointReport",
    "Magnitude",
    "Method",
    "OneByN",
    "PreparedLayer",
    "SpRe",
    "SpReConv2d",
    "load_checkpoint",
]
