"""`nmc update`: other weights for an artifact, without generating code."""

from pathlib import Path
from typing import Annotated

import typer

from nmcompile.cli.compile import OnnxArgument
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import ArtifactArgument, JsonOption
from nmcompile.cli.output import print_facts, print_json
from nmcompile.tables import size


@guarded
def update_artifact(
    artifact: ArtifactArgument,
    model: OnnxArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .nmc file to write; else OUT.nmc is replaced."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put the weights of a model that was trained further into its artifact."""
    from nmcompile.updating import update

    with working() as progress:
        result = update(artifact, model, output=output, progress=progress)
    nbytes = result.path.stat().st_size
    if as_json:
        print_json(
            {
                "output": str(result.path),
                "digest": result.digest,
                "bytes": nbytes,
                "target": result.target,
                "seconds": dict(result.seconds),
                "report": result.report.to_dict(),
            }
        )
        return
    print_facts(
        {
            "output": f"{result.path} ({size(nbytes)})",
            "digest": result.digest,
            "target": result.target,
            "layers": f"{len(result.report.layers)}; "
            f"{result.report.density:.1%} of the dense multiply-accumulates remain",
            "seconds": f"{sum(result.seconds.values()):.1f}",
        }
    )
