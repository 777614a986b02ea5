"""The report of benchmark runs: one page of HTML without anything outside it."""

from nmcompile.bench.report.page import render_report

__all__ = ["render_report"]
