"""Writes a bundle: compiled models and all they need to run beyond Python and numpy."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nmcompile import version
from nmcompile.bundle.libraries import binding_files, library_files, licence_files
from nmcompile.bundle.pythons import compiled_parts
from nmcompile.bundle.readme import readme
from nmcompile.bundle.requirements import find_requirements, needs_gpu
from nmcompile.errors import ArtifactError
from nmcompile.runtime.files import made_folder, scratch_folder
from nmcompile.runtime.format import Artifact, read_artifact
from nmcompile.wording import way

INFO = "bundle.json"  # what a folder must hold to be a bundle
_PACKAGE = Path(version.__file__).parent


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        path: its folder.
        artifacts: file names of the models in it.
        nbytes: size of all files.
        runtime_nbytes: size without the models.
        pythons: the versions of CPython that run it, such as "3.11".
        glibc: the oldest version of the C library that runs it.
        gpu: whether it has what artifacts for GPUs need.
    """

    path: Path
    artifacts: tuple[str, ...]
    nbytes: int
    runtime_nbytes: int
    pythons: tuple[str, ...]
    glibc: str
    gpu: bool


def write_bundle(
    artifacts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    directory: str | os.PathLike[str],
    *,
    pythons: Sequence[str] = (),
    gpu: bool | None = None,
    force: bool = False,
) -> Bundle:
    """Write a folder that runs compiled models where only Python and numpy are installed.

    It runs under the version of Python that writes it, on Linux of this processor architecture;
    `README.txt` in it says what else it needs, `run.py` runs a model.

    Args:
        artifacts: files that `nmcompile.compile` wrote, of different names; none at all for the
            runtime alone.
        directory: the folder to write, in one that exists. It must be missing or empty.
        pythons: other versions of Python to run under, such as "3.12"; needs pip and a network.
        gpu: put in what artifacts for GPUs need; None: if one of `artifacts` is for a GPU.
        force: replace a bundle that is there, with all that was put into it.

    Raises:
        ArtifactError: an artifact is none or damaged, two have one name, or the folder cannot be
            written; what was there is then unchanged.
        DeviceError: a library that must go along is not on this machine.
        TargetError: pip has nothing for one of `pythons`.
    """
    if isinstance(artifacts, str | os.PathLike):
        artifacts = [artifacts]
    target = _checked_target(Path(directory), force)
    models = _read(artifacts)
    if gpu is None:
        gpu = any(map(needs_gpu, models))
    names = tuple(model.path.name for model in models)
    with scratch_folder() as scratch, _written(target) as folder:
        parts = compiled_parts(pythons, scratch)
        files = [
            *_own_files(),
            *binding_files(parts.values()),
            *library_files(gpu),
            *licence_files(gpu),
        ]
        libraries = [source.read_bytes() for name, source in files if ".so" in Path(name).suffixes]
        needs = find_requirements(models, libraries, parts, gpu)
        for name, source in [*files, *((model.path.name, model.path) for model in models)]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
        info = {"nmcompile": version.VERSION, "artifacts": names, **asdict(needs)}
        (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        (folder / "README.txt").write_text(readme(models, needs), encoding="utf-8")
        nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Bundle(
        path=target,
        artifacts=names,
        nbytes=nbytes,
        runtime_nbytes=nbytes - sum(model.path.stat().st_size for model in models),
        pythons=needs.pythons,
        glibc=needs.glibc,
        gpu=gpu,
    )


def _read(artifacts: Sequence[str | os.PathLike[str]]) -> list[Artifact]:
    names: dict[str, Path] = {}
    for path in map(Path, artifacts):
        if path.suffix != ".nmc":
            raise ArtifactError(f"{path}: expected a file called NAME.nmc")
        if path.name in names:
            raise ArtifactError(
                f"{names[path.name]} and {path} have one name and would stand in one folder: "
                "rename one of them"
            )
        names[path.name] = path
    found = [read_artifact(path) for path in names.values()]
    for model in found:
        if model.manifest.needs_onnxruntime:
            raise ArtifactError(
                f"{model.path}: onnxruntime runs parts of it, and a bundle holds TVM's runtime "
                "only: `nmc compile --rest none` (rest='none') shows which operators these are; or "
                "install nmcompile and onnxruntime where it is to run"
            )
    return found


def _own_files() -> Iterator[tuple[str, Path]]:
    """The runtime and what stands around it; `nmcompile.runtime` is all that is imported."""
    here = Path(__file__).parent
    yield "run.py", here / "run.py"
    yield "nmcompile/__init__.py", here / "package.py"
    yield "nmcompile/errors.py", _PACKAGE / "errors.py"
    for file in sorted((_PACKAGE / "runtime").glob("*.py")):
        yield f"nmcompile/runtime/{file.name}", file


def _checked_target(directory: Path, force: bool) -> Path:
    """The folder to write, without links in its path.

    Raises:
        ArtifactError: something stands there that must not be replaced.
    """
    target = Path(os.path.realpath(directory))
    if not os.path.lexists(target):
        return target
    if not target.is_dir():
        raise ArtifactError(f"cannot write {directory}: it is a file; name a new folder")
    if os.path.samefile(target, os.curdir):
        raise ArtifactError(f"cannot write {directory}: it is the working directory; name a folder")
    try:
        filled = any(target.iterdir())
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror}; name another") from error
    if filled and not (target / INFO).is_file():
        raise ArtifactError(
            f"cannot write {directory}: it holds something else than a bundle (no {INFO}), which "
            "stays; name a new folder"
        )
    if filled and not force:
        raise ArtifactError(
            f"cannot write {directory}: there is a bundle already; name a new folder, or replace "
            f"it with {way('--force', 'force=True')}"
        )
    return target


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` at the end if nothing failed.

    Raises:
        ArtifactError: the system refuses; `target` is then as it was.
    """
    mark = secrets.token_hex(8)
    folder, old = (target.with_name(f".{target.name}.{mark}.{end}") for end in ("tmp", "old"))
    try:
        with made_folder(target.parent):
            try:
                folder.mkdir()
                yield folder
                try:
                    if target.exists():
                        target.rename(old)
                    folder.rename(target)
                except BaseException:
                    if old.exists() and not target.exists():
                        old.rename(target)
                    raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                if target.exists():
                    shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {target}: {error}; nothing was left behind, and what was there is "
            "unchanged: free some space or choose another folder"
        ) from error
