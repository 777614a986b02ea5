"""Text for terminals."""

import typer

from nmcompile.tables import printable


def say(text: str, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    typer.echo(printable(text), err=err)
