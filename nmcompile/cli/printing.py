"""Text for terminals."""

import typer


def printable(text: str) -> str:
    """Escape what does not print: names come from files, and terminals obey control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    typer.echo(printable(text), err=err)
