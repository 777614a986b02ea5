"""Measuring candidates on the machine at hand, and remembering which were fastest."""

from nmcompile.tuning.database import Tuned, TuningDatabase
from nmcompile.tuning.tuner import Tuner

__all__ = ["Tuned", "Tuner", "TuningDatabase"]
