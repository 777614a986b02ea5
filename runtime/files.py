"""Writing whole files or none, and folders for what is only needed for a moment.

A process that is killed leaves its temporary files. The next one that writes the same file, or that
compiles, removes them: those of living processes are locked.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nmcompile.errors import ArtifactError, DeviceError

_SCRATCH = "nmcompile-work-"


def replace_file(path: Path, pieces: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write a whole file or none: to a temporary name first, then renamed.

    Where `path` is a symbolic link, what it points to is replaced. Folders that are missing on the
    way to it are made.

    Args:
        path: the file.
        pieces: its content.
        durable: whether it is to be whole or as before also if the power goes; without, it is
            whole whatever happens to the program, and written sooner.

    Raises:
        ArtifactError: it cannot be written; what was there before is unchanged.
    """
    try:
        target = _target(path)
        with made_folder(target.parent):
            sweep_temporaries(target.parent, target.name)
            descriptor, temporary = _begin(target)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                    os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ArtifactError(
            f"cannot write {path}: {reason}; nothing was left behind, and a file already there is "
            "unchanged: free some space or choose another output"
        ) from error
    if durable:
        _sync_directory(target.parent)


def check_writable(path: Path) -> None:
    """Find out before minutes of work, not after, that a file cannot be written.

    Raises:
        ArtifactError: its folder is not writable, or cannot be made; or it is a folder, device or
            pipe.
    """
    try:
        folder = _target(path).parent
        while not folder.exists():  # whatever is missing will be made
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ArtifactError(
            f"cannot write {path}: {reason}; name a file in a folder that is writable"
        ) from error


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; what is made here goes again where the body fails.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # somebody else's files are in it, or it was never made
                path.rmdir()
        raise


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder that is gone afterwards.

    Raises:
        DeviceError: none can be made.
    """
    try:
        descriptor, folder = _make_scratch()
    except OSError as error:
        raise DeviceError(
            f"cannot make a temporary folder: {error.strerror or error}; free some space there, or "
            "point TMPDIR at a folder that exists and is writable"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep_scratch() -> None:
    """Remove the scratch folders of this user's processes that were killed."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
            with suppress(OSError):
                if folder.lstat().st_uid == os.getuid() and (held := _lock(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)


def sweep_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of a file in a folder left, or of any file there."""
    stem = ".*" if name is None else re.escape(name)
    mine = re.compile(rf"\.{stem}\.[0-9a-f]{{16}}\.tmp", re.DOTALL)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if mine.fullmatch(entry.name) and (held := _lock(Path(entry.path))) is not None:
                with suppress(OSError):
                    os.unlink(entry.path)
                os.close(held)


def _target(path: Path) -> Path:
    """Where to write: behind symbolic links.

    Raises:
        OSError: there is something that is no file.
    """
    try:
        target = path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(0, "its symbolic links go round in a circle") from error
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(0, "it is a device, a pipe or a socket and no file")
    return target


def _begin(target: Path) -> tuple[int, Path]:
    """A new file beside another, open and locked."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        # 0o666 leaves the permissions to the umask, as for any file a user writes.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another process has swept it before it was locked


def _make_scratch() -> tuple[int, Path]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        with suppress(FileNotFoundError):  # swept before it was locked
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return descriptor, folder
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor of what nobody else has locked, which is so until it is closed; else None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_directory(directory: Path) -> None:
    """Make the rename durable where the file system can; the file itself is already complete."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
