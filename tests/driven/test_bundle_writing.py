"""Writing bundles: what is replaced and what never is, and the command."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import nmcompile
from nmcompile.cli import app
from nmcompile.errors import ArtifactError


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    bundle = nmcompile.write_bundle([], tmp_path / "b")
    assert bundle.path == tmp_path / "b"
    assert (tmp_path / "b" / "run.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_is_replaced_when_that_is_asked_for(tmp_path: Path, sparse_artifact: Path) -> None:
    nmcompile.write_bundle(sparse_artifact, tmp_path / "b")
    (tmp_path / "b" / "mine.txt").write_text("put in by hand")
    with pytest.raises(ArtifactError, match=r"there is a bundle already.*force=True"):
        nmcompile.write_bundle([], tmp_path / "b")
    assert {"mine.txt", "sparse.nmc"} < files_in(tmp_path / "b")
    nmcompile.write_bundle([], tmp_path / "b", force=True)
    assert not {"mine.txt", "sparse.nmc"} & files_in(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def other_files(folder: Path) -> Path:
    (folder / "b").mkdir()
    (folder / "b" / "thesis.txt").write_text("years of work")
    return folder / "b"


def a_file(folder: Path) -> Path:
    (folder / "b").write_text("a file")
    return folder / "b"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (other_files, "holds something else than a bundle"),
        (a_file, "it is a file"),
        (lambda folder: Path("."), "it is the working directory"),
    ],
)
def test_other_things_are_never_replaced(
    target: Callable[[Path], Path],
    reason: str,
    force: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = target(tmp_path)
    before = files_in(tmp_path)
    with pytest.raises(ArtifactError, match=f"cannot write {directory}: .*{reason}"):
        nmcompile.write_bundle([], directory, force=force)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("step", ["copyfile", "rename"])
def test_a_failure_leaves_what_was_there(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nmcompile.write_bundle([], tmp_path / "b")
    before = files_in(tmp_path)
    copy, rename = shutil.copyfile, Path.rename

    def full(source: Path, target: Path) -> Any:
        if target.name == "libtvm_runtime.so":
            raise OSError(28, "No space left on device")
        return copy(source, target)

    def refused(source: Path, target: Path) -> Any:
        if source.name.endswith(".tmp"):
            raise OSError(13, "Permission denied")
        return rename(source, target)

    if step == "copyfile":
        monkeypatch.setattr("nmcompile.bundle.write.shutil.copyfile", full)
    else:
        monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(ArtifactError, match=r"cannot write .*b: .*what was there is unchanged"):
        nmcompile.write_bundle([], tmp_path / "b", force=True)
    assert files_in(tmp_path) == before


def test_artifacts_are_checked_before_anything_is_written(
    sparse_artifact: Path, tmp_path: Path
) -> None:
    content = bytearray(sparse_artifact.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.nmc").write_bytes(content)
    (tmp_path / "sub").mkdir()
    shutil.copyfile(sparse_artifact, tmp_path / "sub" / "sparse.nmc")
    cases: list[tuple[list[Path], str]] = [
        ([tmp_path / "damaged.nmc"], "damaged"),
        ([tmp_path / "missing.nmc"], "cannot read"),
        ([tmp_path / "model.onnx"], r"expected a file called NAME\.nmc"),
        ([sparse_artifact, tmp_path / "sub" / "sparse.nmc"], "have one name"),
    ]
    for artifacts, reason in cases:
        with pytest.raises(ArtifactError, match=reason):
            nmcompile.write_bundle(artifacts, tmp_path / "b")
        assert not (tmp_path / "b").exists()


# nmc bundle


def nmc(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_a_bundle(sparse_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    done = nmc("bundle", sparse_artifact, "-o", folder)
    assert done.exit_code == 0, done.output
    assert re.search(rf"output  {folder} \(\S+ MB; \S+ MB without the models\)", done.stdout)
    assert re.search(r"needs   CPython 3\.\d+ with numpy, glibc 2\.\d+ or later\n", done.stdout)
    done = nmc("bundle", sparse_artifact, "-o", folder, "--force", "--json")
    document = json.loads(done.stdout)
    assert document["artifacts"] == ["sparse.nmc"]
    assert document["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert document["pythons"] == ["{}.{}".format(*sys.version_info[:2])]


def test_the_command_fails_with_one_line(sparse_artifact: Path, tmp_path: Path) -> None:
    folder = other_files(tmp_path)
    for options, reason in (
        ([folder], "cannot write"),
        ([folder, "--force"], "cannot write"),
        ([tmp_path / "new", "--python", "2.7"], "Python version '2.7': expected 3.11 or later"),
    ):
        done = nmc("bundle", sparse_artifact, "-o", *options)
        assert (done.exit_code, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"error: {reason}")
    assert not (tmp_path / "new").exists()
    assert files_in(folder) == {"thesis.txt"}
