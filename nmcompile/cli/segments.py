"""The parts of a model for people, and the options that say who runs what is not ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from nmcompile.cli.output import print_table

RestOption = Annotated[
    str,
    typer.Option(
        metavar="onnxruntime|none",
        help="Who runs the operators that are not ours; none refuses them.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="The same as --rest none: all of the model, or an error.")
]

WIDE_LIST = 6
"""Kinds of operators, and reasons, that a cell of the table holds."""


def rest_of(rest: str, strict: bool) -> str:
    """What the driver takes for both options."""
    return "none" if strict else rest


def print_segments(segments: Sequence[Mapping[str, Any]]) -> None:
    """Print the segments of a report or manifest (`SegmentReport.to_dict`).

    Args:
        segments: one mapping each; those of artifacts are free-form, so keys may be missing.
    """
    rows = []
    for number, segment in enumerate(segments, 1):
        reasons = segment.get("reasons")
        rows.append(
            (
                str(number),
                _text(segment.get("runs")),
                _text(segment.get("nodes")),
                _operators(segment.get("operators")),
                _short([_text(reason) for reason in reasons] if type(reasons) is list else []),
            )
        )
    print_table("", ("part", "runs in", "nodes", "operators", "not ours because"), rows, (0, 2))


def _operators(found: object) -> str:
    if type(found) is not dict:
        return "?"
    counts = {str(name): count for name, count in found.items() if type(count) is int}
    ordered = sorted(counts, key=lambda name: -counts[name])
    return _short([f"{counts[name]} x {name}" for name in ordered], ", ")


def _short(words: Sequence[str], between: str = "; ") -> str:
    more = f"{between}and {len(words) - WIDE_LIST} more" if len(words) > WIDE_LIST else ""
    return between.join(words[:WIDE_LIST]) + more


def _text(value: object) -> str:
    return str(value) if type(value) in (str, int) else "?"
