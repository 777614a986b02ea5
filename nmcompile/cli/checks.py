"""What can be wrong with arguments, found before anything is imported that takes seconds."""

from __future__ import annotations

from pathlib import Path

from nmcompile.cli.options import is_factory
from nmcompile.errors import ArtifactError, InputError
from nmcompile.model_files import check_model_file


def check_model(text: str) -> None:
    """Look at a MODEL argument that names a file.

    Raises:
        ModelError: the file is not there, or of a kind that is no model.
    """
    if not is_factory(text):
        check_model_file(text)


def check_target(name: str) -> None:
    """Look for a target, and what compiling for it needs.

    Raises:
        TargetError, DeviceError: as `find_target` and `check_toolchain`.
    """
    from nmcompile.targets import check_toolchain, find_target

    check_toolchain(find_target(name))


def check_pattern(text: str, density: float | None = None) -> None:
    """Read a pattern, or auto.

    Raises:
        PatternError: it is none, or says another density than the one beside it.
    """
    from nmcompile.sparsity import one_density, parse_wanted

    if text.strip().lower() != "auto":
        one_density(parse_wanted(text), density)


def check_outputs(*paths: Path | None) -> None:
    """Make sure that files can be written.

    Raises:
        ArtifactError: one cannot.
    """
    from nmcompile.runtime.files import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)


def check_written(output: Path, model: str, suffix: str) -> None:
    """Look at where the model that a command makes goes.

    Args:
        output: the file to write.
        model: the MODEL argument, which it must not overwrite.
        suffix: of what is written, ".nmc" or ".onnx": the other one would be a wrong name.

    Raises:
        ArtifactError: it is the model itself, is called what it is not, or cannot be written.
    """
    if is_same_file(output, Path(model)):
        raise ArtifactError(
            f"{output} is the model itself, and would be overwritten: name another output, such as "
            f"{output.with_name(f'{output.stem}.new{suffix}')}"
        )
    other = {".nmc": ".onnx", ".onnx": ".nmc"}[suffix]
    if output.suffix.lower() == other:
        raise ArtifactError(
            f"{output}: what is written is no {other} file: expected a name that ends in {suffix}; "
            f"name it {output.with_suffix(suffix)}"
        )
    check_outputs(output)


def is_same_file(a: Path, b: Path) -> bool:
    """Whether two paths, links followed, are one file that is there."""
    return a.exists() and b.exists() and a.samefile(b)


def check_data(path: Path | None) -> None:
    """Make sure that calibration data is there.

    Raises:
        InputError: it is not.
    """
    if path is not None and not path.exists():
        raise InputError(
            f"cannot read {path}: no such folder or .npz file; expected a folder of images or of "
            ".npy files, or a .npz with an array for each input"
        )
