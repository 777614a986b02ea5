"""`nmc run`: arrays from files, through an artifact, to files."""

import io
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import ArtifactArgument, JsonOption, ThreadsOption
from nmcompile.cli.output import print_json, print_table
from nmcompile.errors import ArtifactError, InputError


class InputFile(NamedTuple):
    """One `--input`; the name is "" where only a file was given."""

    name: str
    path: Path


def parse_input(text: str) -> InputFile:
    """Read `NAME=FILE.npy` or `FILE.npy`."""
    name, found, path = text.rpartition("=")
    if not path or (found and not name):
        raise typer.BadParameter(f"expected NAME=FILE.npy or FILE.npy, found {text!r}")
    return InputFile(name, Path(path))


@guarded
def run_artifact(
    artifact: ArtifactArgument,
    inputs: Annotated[
        list[InputFile],
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=FILE.npy",
            parser=parse_input,
            help="An input array; FILE.npy alone where the model has one input.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Gets one .npy file per output.")
    ],
    threads: ThreadsOption = None,
    digest: Annotated[
        str | None, typer.Option(help="Refuse an artifact that has another digest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a compiled model once. Loading runs native code: only load files you trust."""
    from nmcompile import runtime

    if len(inputs) > 1 and any(not file.name for file in inputs):
        raise typer.BadParameter(
            "several inputs need names: expected NAME=FILE.npy", param_hint="--input"
        )
    with working() as progress:
        progress("loading")
        arrays = {file.name: read_array(file.path) for file in inputs}
        session = runtime.load(artifact, threads=threads, digest=digest)
        progress("running")
        results = session.run(arrays[""] if "" in arrays else arrays)
        files = file_names([spec.name for spec in session.outputs])
        make_folder(output)
        for name, array in results.items():
            write_array(output / files[name], array)
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "file": str(output / files[name]),
        }
        for name, array in results.items()
    ]
    if as_json:
        print_json({"artifact": str(artifact), "threads": session.threads, "outputs": rows})
        return
    print_table(
        "",
        ("output", "shape", "dtype", "file"),
        [
            (row["name"], "x".join(map(str, row["shape"])) or "scalar", row["dtype"], row["file"])
            for row in rows
        ],
    )


def read_array(path: Path) -> Any:
    """Read a .npy file; pickled objects are refused.

    Raises:
        InputError: it is none, or cannot be read.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"input file {path} cannot be read: expected an array written by numpy.save, found: "
            f"{reason}"
        ) from error


def write_array(path: Path, array: Any) -> None:
    """Write a .npy file, all of it or nothing."""
    import numpy as np

    from nmcompile.runtime.files import replace_file

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    replace_file(path, [buffer.getvalue()])


def file_names(outputs: list[str]) -> dict[str, str]:
    """A file name for each output: its own name, as far as a file may be called that."""
    taken: dict[str, str] = {}
    for name in outputs:
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "output"
        candidate, number = stem, 0
        while candidate in taken.values():
            number += 1
            candidate = f"{stem}_{number}"
        taken[name] = candidate
    return {name: f"{stem}.npy" for name, stem in taken.items()}


def make_folder(path: Path) -> None:
    """Make the output folder and those above it.

    Raises:
        ArtifactError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot make the output folder {path}: {error.strerror or error}; choose another"
        ) from error
