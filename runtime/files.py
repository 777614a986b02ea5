"""Writing whole files or none."""

import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nmcompile.errors import ArtifactError


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a whole file or none: to a temporary name first, then renamed.

    Raises:
        ArtifactError: it cannot be written; what was there before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        # 0o666 leaves the permissions to the umask, as for any file a user writes.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
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
    _sync_directory(path.parent)


def check_writable(path: Path) -> None:
    """Find out before minutes of work, not after, that a file cannot be written.

    Raises:
        ArtifactError: its folder is missing or not writable, or it is a folder itself.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; choose an output folder that "
            "exists and is writable"
        ) from error
    if path.is_dir():
        raise ArtifactError(f"cannot write {path}: it is a folder; name a file")


def _sync_directory(directory: Path) -> None:
    """Make the rename durable where the file system can; the file itself is already complete."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
