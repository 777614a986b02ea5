"""Folders that run compiled models where nothing but Python and numpy is installed."""

from nmcompile.bundle.write import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]
