"""The command line `nmc`."""

from nmcompile.cli.app import app, main

__all__ = ["app", "main"]
