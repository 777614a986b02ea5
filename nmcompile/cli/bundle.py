"""`nmc bundle`: folders that run models where nothing is installed."""

from pathlib import Path
from typing import Annotated

import typer

from nmcompile.cli.completion import complete_artifact
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import JsonOption
from nmcompile.cli.output import print_facts, print_json
from nmcompile.tables import size


@guarded
def bundle_artifacts(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT.nmc...", help="Compiled models.", autocompletion=complete_artifact
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder to write; missing ones above it are made.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that is there, with all in it.")
    ] = False,
    pythons: Annotated[
        list[str] | None,
        typer.Option(
            "--python",
            metavar="3.12",
            help="Another version of Python to run under; downloaded by pip. May be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a folder that runs compiled models with Python and numpy alone.

    GPU models need the NVIDIA driver too. The folder runs under the version of Python that
    writes it; its README.txt says what else it needs.
    """
    from nmcompile.bundle import write_bundle

    with working() as progress:
        progress("checking and copying")
        bundle = write_bundle(artifacts, output, pythons=pythons or (), force=force)
    if as_json:
        print_json(
            {
                "output": str(output),
                "artifacts": list(bundle.artifacts),
                "bytes": bundle.nbytes,
                "runtime_bytes": bundle.runtime_nbytes,
                "pythons": list(bundle.pythons),
                "glibc": bundle.glibc,
                "gpu": bundle.gpu,
            }
        )
        return
    runtime = f"{size(bundle.runtime_nbytes)} without the models"
    print_facts(
        {
            "output": f"{output} ({size(bundle.nbytes)}; {runtime})",
            "needs": f"CPython {' or '.join(bundle.pythons)} with numpy, glibc {bundle.glibc} or "
            f"later{', the NVIDIA driver' if bundle.gpu else ''}",
            "run": f"python{bundle.pythons[0]} {output / 'run.py'} --help; read README.txt there",
        }
    )
