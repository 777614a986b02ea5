"""Runs a compiled model of this folder: python run.py INPUT.npz -o OUTPUT.npz."""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # python -I leaves a script's folder out


def main() -> None:
    """Read the arguments, run the model, write its outputs; exit codes are those of `nmc`."""
    info = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Run a compiled model. Loading runs native code: only run files you trust.",
    )
    parser.add_argument(
        "input", nargs="?", metavar="INPUT.npz", help="arrays by input name; FILE.npy for one input"
    )
    parser.add_argument("-o", "--output", metavar="OUTPUT.npz", help="gets an array per output")
    parser.add_argument("--random", action="store_true", help="run on random numbers instead")
    parser.add_argument("--artifact", metavar="FILE.nmc", help="which model; else the only one")
    parser.add_argument("--threads", type=int, help="cores to run on; all by default")
    parser.add_argument("--repeat", type=int, metavar="N", help="also time N further runs")
    options = parser.parse_args()
    if (options.input is None) != options.random:
        parser.error("expected INPUT.npz or --random")
    artifact = options.artifact
    if artifact is None:
        if len(info["artifacts"]) != 1:
            names = ", ".join(info["artifacts"]) or "none"
            parser.error(f"expected --artifact FILE.nmc; in this folder: {names}")
        artifact = HERE / info["artifacts"][0]
    elif not Path(artifact).exists() and artifact in info["artifacts"]:
        artifact = HERE / artifact
    warnings.showwarning = _show_warning
    try:
        from nmcompile import runtime
    except ImportError as error:
        sys.exit(f"error: {error}")
    from nmcompile.errors import NmcompileError
    from nmcompile.runtime.samples import random_inputs

    try:
        session = runtime.load(artifact, threads=options.threads)
        inputs = random_inputs(session.inputs) if options.random else _read(Path(options.input))
        outputs = session.run(inputs)
        if options.output is not None:
            _write(Path(options.output), outputs)
        for name, array in outputs.items():
            shape = "x".join(map(str, array.shape)) or "scalar"
            low, high = float(array.min()), float(array.max())
            print(f"{name}  {shape}  {array.dtype.name}  {low:g} to {high:g}")
        if options.repeat is not None:
            seconds = session.bench(inputs, repeats=options.repeat)
            print(f"median of {len(seconds)} runs: {statistics.median(seconds) * 1e3:.3f} ms")
    except NmcompileError as error:
        sys.exit("error: " + " ".join(str(error).splitlines()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _read(path: Path) -> Any:
    """The arrays by name of an .npz file, or the array of an .npy file."""
    import numpy as np

    from nmcompile.errors import InputError

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"input file {path} cannot be read: expected arrays written by numpy.savez or "
            f"numpy.save, found: {reason}"
        ) from error


def _write(path: Path, outputs: dict[str, Any]) -> None:
    """As numpy.savez, which refuses some names; all of the file or nothing."""
    import numpy as np

    from nmcompile.runtime.files import replace_file

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    replace_file(path, [buffer.getvalue()])


def _show_warning(message: Any, category: Any, *rest: Any, **options: Any) -> None:
    if category is RuntimeWarning:
        print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
