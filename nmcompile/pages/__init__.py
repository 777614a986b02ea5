"""Pages of HTML that need nothing outside of them: their skeleton, styles and common script."""

from nmcompile.pages.page import asset, render_page

__all__ = ["asset", "render_page"]
