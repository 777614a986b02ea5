"""Front ends: models of every accepted kind, opened behind one interface."""

from nmcompile.frontends.source import SourceModel, open_model

__all__ = ["SourceModel", "open_model"]
