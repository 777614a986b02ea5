"""Tables for people and JSON for programs, both on stdout."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from nmcompile.tables import spell_facts, spell_table


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; numpy and path objects are refused, not guessed at."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    *,
    prose: int | None = None,
    spare: Sequence[int] = (),
) -> None:
    """Print a table and a blank line; arguments as `spell_table`."""
    typer.echo(spell_table(title, columns, rows, right, prose=prose, spare=spare) + "\n")


def print_facts(facts: Mapping[str, str]) -> None:
    """Print `name  value` lines."""
    typer.echo(spell_facts(facts))
