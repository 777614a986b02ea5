"""The options that say who runs what of a model is not ours."""

from typing import Annotated

import typer

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


def rest_of(rest: str, strict: bool) -> str:
    """What the driver takes for both options."""
    return "none" if strict else rest
