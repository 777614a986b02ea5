"""Tables for people and JSON for programs, both on stdout."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from nmcompile.cli.printing import printable, say
from nmcompile.layer_facts import known_facts
from nmcompile.units import count

WIDE = 160  # columns where stdout is a file or pipe: nothing there needs wrapping earlier


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; numpy and path objects are refused, not guessed at."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()
) -> None:
    """Print a table; `right` are the indices of columns of numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=printable(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    numbers = set(right)
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="right" if index in numbers else "left", no_wrap=index in numbers
        )
        if index not in numbers:
            table.columns[-1].overflow = "fold"
    for row in rows:
        # As Text, so that brackets in layer names are not read as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=WIDE)
    console.print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print `name  value` lines."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}")


def print_layers(layers: Sequence[Mapping[str, Any]], *, checked: bool = False) -> None:
    """Print the layers of a report or manifest (`nmcompile.LayerReport.to_dict`).

    Args:
        layers: one mapping per layer; those of artifacts are free-form, so keys may be missing.
        checked: a pattern was asked for: show how often each layer breaks it.
    """
    columns = ["layer", "weight", "pattern", "density", "MACs", "kernel", "sparse"]
    if checked:
        columns.insert(5, "violations")
    rows = []
    for layer in map(known_facts, layers):
        sparse = "yes" if layer.get("sparse") else f"no: {layer.get('reason') or 'unknown'}"
        row = [
            str(layer.get("name", "?")),
            "x".join(map(str, layer.get("shape", ()))),
            str(layer.get("pattern", "?")),
            f"{layer.get('density', 1.0):.3f}",
            count(layer.get("macs", 0)),
            str(layer.get("kernel", "?")).partition("__")[0],
            sparse,
        ]
        if checked:
            first = layer.get("first_violation")
            where = f", first at {tuple(first)}" if first else ""
            row.insert(5, f"{layer.get('violations', 0)}{where}")
        rows.append(row)
    print_table("", columns, rows, right=(3, 4))


def size(nbytes: int) -> str:
    """A size in bytes, with a decimal prefix above a thousand."""
    return f"{count(nbytes)}B" if nbytes >= 1000 else f"{nbytes} B"
