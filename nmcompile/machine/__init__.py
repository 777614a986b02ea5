"""The machine at hand: what it is, what else runs on it, how fast it can be, how it is timed.

Nothing is exported: devices import `describe`, `load`, `trial` and the timing half of `roofs`,
which need no compiler.
"""
