"""Writing whole files or none, and folders for a moment."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nmcompile.errors import ArtifactError, DeviceError
from nmcompile.runtime.files import check_writable, replace_file, scratch_folder, sweep_scratch

KILLED = """
import os, signal, sys
from pathlib import Path
from nmcompile.runtime.files import replace_file, scratch_folder
def pieces():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
with scratch_folder():
    replace_file(Path(sys.argv[1]), pieces())
"""


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    target, link = tmp_path / "inner" / "real", tmp_path / "link"
    link.symlink_to("inner/real")
    for content in (b"new", b"newer"):  # the first time, it leads nowhere yet
        check_writable(link)
        replace_file(link, [content])
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [target.parent, link]


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "it is a folder"),
        (os.mkfifo, "it is a device, a pipe"),
        (lambda path: path.symlink_to("/dev/null"), "it is a device, a pipe"),
        (_circle, "links"),
    ],
)
@pytest.mark.parametrize("write", [check_writable, lambda path: replace_file(path, [b"x"])])
def test_only_regular_files_are_written(
    make: Callable[[Path], object],
    reason: str,
    write: Callable[[Path], object],
    tmp_path: Path,
) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match=rf"cannot write .*out: .*{reason}"):
        write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, output = tmp_path / "temporary", tmp_path / "out" / "file"
    temporary.mkdir()
    output.parent.mkdir()
    output.write_bytes(b"before")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, output],
        check=False, cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert killed.returncode == -9
    assert len(list(output.parent.iterdir())) == 2 and len(list(temporary.iterdir())) == 1
    assert output.read_bytes() == b"before"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sweep_scratch()
    replace_file(output, [b"after"])
    assert list(temporary.iterdir()) == []
    assert list(output.parent.iterdir()) == [output]
    assert output.read_bytes() == b"after"


def test_what_a_living_process_uses_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        sweep_scratch()
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    living = tmp_path / f".file.{'0' * 16}.tmp"
    other = tmp_path / ".file.tmp"  # not one of ours
    other.touch()
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        replace_file(tmp_path / "file", [b"x"])
        assert living.exists()
    replace_file(tmp_path / "file", [b"x"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.tmp", "file"]


def test_a_refused_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(DeviceError, match=r"cannot make a temporary folder: .*TMPDIR"):
        scratch_folder().__enter__()
