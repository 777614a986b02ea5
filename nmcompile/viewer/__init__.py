"""A compiled model to look at: its graph as it was lowered, and which weights are zero."""

from nmcompile.viewer.page import render_view

__all__ = ["render_view"]
