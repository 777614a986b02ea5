"""Every exception nmcompile raises on purpose, in one tree.

This module imports nothing, so that the runtime can share it. A message names the object (layer,
file or argument), what was expected, what was found, and what to do; the cause is chained.
"""


class NmcompileError(Exception):
    """Base of all errors below; the command line prints its message and exits with 1."""


class ModelError(NmcompileError):
    """The model file or object cannot be read: not ONNX, truncated, external data missing."""


class ShapeError(ModelError):
    """An input shape is open, missing, or does not fit the model."""


class WeightError(ModelError):
    """A weight holds NaN or infinity, or has a zero-sized dimension."""


class UnsupportedOperatorError(ModelError):
    """The graph holds an operator that cannot be lowered; `node` is its name, if one is known."""

    node = ""


class ImpossibleModelError(UnsupportedOperatorError):
    """The graph asks for what no engine can compute."""


class PatternError(NmcompileError):
    """A pattern is malformed, or a weight violates the pattern it is said to have."""


class TargetError(NmcompileError):
    """The compilation target is unknown, or its tool chain is missing."""


class ArtifactError(NmcompileError):
    """An artifact file is not one, is damaged, is too new, or could not be written."""


class DeviceError(NmcompileError):
    """This machine lacks what the artifact needs (CPU features, memory)."""


class DeclinedError(DeviceError):
    """An engine of a benchmark was not measured for a reason that is no failure: too slow, say."""


class InputError(NmcompileError):
    """A run-time input has the wrong name, shape or dtype."""
