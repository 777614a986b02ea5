"""`nmc run`: arrays from files, through an artifact, to files."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from nmcompile.cli.checks import check_outputs
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import ArtifactArgument, JsonOption, ThreadsOption
from nmcompile.cli.output import print_json, print_table
from nmcompile.errors import InputError


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
        list[InputFile] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=FILE.npy",
            parser=parse_input,
            help="An input array; FILE.npy alone where the model has one input.",
        ),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Run on random numbers in place of --input.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of --random.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Gets one .npy file per output; missing folders are made.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    digest: Annotated[
        str | None, typer.Option(help="Refuse an artifact that has another digest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a compiled model once, and say what comes out.

    Loading runs native code: only load files you trust.
    """
    files = inputs or []
    if random == bool(files):
        raise typer.BadParameter(
            f"expected --input NAME=FILE.npy, or --random, found {'both' if random else 'neither'}",
            param_hint="--random" if random else "--input",
        )
    if len(files) > 1 and any(not file.name for file in files):
        raise typer.BadParameter(
            "several inputs need names: expected NAME=FILE.npy", param_hint="--input"
        )
    if output is not None:
        check_outputs(output / "output.npy")
    from nmcompile import runtime
    from nmcompile.runtime.samples import random_inputs

    with working() as progress:
        progress("loading")
        arrays = {file.name: read_array(file.path) for file in files}
        session = runtime.load(artifact, threads=threads, digest=digest)
        if random:
            arrays = random_inputs(session.inputs, seed)
        progress("running")
        results = session.run(arrays[""] if "" in arrays else arrays)
        names = file_names([spec.name for spec in session.outputs])
        written = {} if output is None else {name: output / names[name] for name in results}
        for name, path in written.items():
            write_array(path, results[name])
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            **range_of(array),
            **({"file": str(written[name])} if name in written else {}),
        }
        for name, array in results.items()
    ]
    if as_json:
        print_json({"artifact": str(artifact), "threads": session.threads, "outputs": rows})
        return
    columns = ["output", "shape", "dtype", "lowest", "mean", "highest"]
    columns += ["file"] if written else []
    print_table("", columns, [_cells(row) for row in rows], right=(3, 4, 5))


def range_of(array: Any) -> dict[str, float | None]:
    """The lowest, mean and highest element; None of no elements, or where one is no number."""
    import numpy as np

    if not array.size:
        return dict.fromkeys(("lowest", "mean", "highest"))
    values = np.asarray(array, np.float64)
    found = {"lowest": values.min(), "mean": values.mean(), "highest": values.max()}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _cells(row: Mapping[str, Any]) -> list[str]:
    shape = "x".join(map(str, row["shape"])) or "scalar"
    numbers = (row["lowest"], row["mean"], row["highest"])
    spelled = ["none" if number is None else f"{number:.4g}" for number in numbers]
    return [row["name"], shape, row["dtype"], *spelled, *([row["file"]] if "file" in row else [])]


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
