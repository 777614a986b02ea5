"""Why torch runs a graph itself: said once for each reason."""

from __future__ import annotations

import functools
import logging
import warnings

from nmcompile.errors import UnsupportedOperatorError

log = logging.getLogger("nmcompile.dynamo")
BACKEND = "torch.compile(backend='nmcompile')"


class NothingOursError(UnsupportedOperatorError):
    """No part of a graph pays to compile; `layers` counts its convolutions and matrix products."""

    def __init__(self, message: str, layers: int) -> None:
        super().__init__(message)
        self.layers = layers


@functools.cache
def warn(reason: str) -> None:
    """Warn that torch runs a graph."""
    warnings.warn(f"{BACKEND}: torch runs a graph itself: {reason}", RuntimeWarning, stacklevel=4)
