"""Files by key in a folder that several programs share.

An entry is one file, named for the sha256 of its key and of its content:

    <folder>/<2 digits>/<sha256 of the key>-<sha256 of the content>

It appears whole, by a rename, and is held against its name whenever it is read: what a full disk or
a power cut has damaged counts as absent and is removed. Nothing locks: writers of one key bring
files that are each complete. The time of a file's last change is that of its last use, by which
those go that nobody wanted for the longest.

Libraries that do as much (diskcache) keep a database beside the files, unpickle what is in it, and
do not notice damage.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from nmcompile.errors import ArtifactError
from nmcompile.runtime.files import replace_file, sweep_temporaries

LIMIT_BYTES = 4 << 30
VARIABLE = "NMCOMPILE_CACHE"
"""Environment variable: another folder, or one of `OFF`."""
OFF = ("0", "off")
_ENTRY = re.compile(r"[0-9a-f]{64}-([0-9a-f]{64})")
_CHUNK = 1 << 20
_SHARE = 16
"""One part in so many of the limit may be added before others' entries are counted again."""


def find_folder(named: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of a store; None where there is to be none.

    Args:
        named: a folder, or one of `OFF`; None for what the environment says: `NMCOMPILE_CACHE` if
            it is set, else `nmcompile` in `XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
        RuntimeError: the user has no home.
    """
    named = named or os.environ.get(VARIABLE, "")
    if isinstance(named, str) and named.lower() in OFF:
        return None
    if named:
        return Path(named).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "nmcompile"


class Cache:
    """A bounded store, safe for threads and processes that use it at once, and for killed ones.

    A folder that cannot be used, or that other users may write to, is as good as none: one
    warning says so, then nothing is found and nothing kept.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        """Open a store; its folder is made when something is first kept.

        Args:
            folder: where, or one of `OFF`: nothing is kept; None for what the environment says.
            limit_bytes: what all entries may take together. Programs that write at once can
                exceed it by a sixteenth each.
        """
        self._limit = limit_bytes
        self._guard = threading.Lock()
        self._room = 0  # bytes that may be added before all entries are counted
        try:
            self._folder = find_folder(folder)
        except RuntimeError as error:
            self._folder = None
            _warn(f"nothing is cached: {error}; {VARIABLE} names a folder, or is off")

    def __bool__(self) -> bool:
        """Whether anything can be kept."""
        return self._folder is not None

    def path(self, key: str) -> Path | None:
        """The file that was kept under a key, or None.

        It stays until others need the room: open or map it at once, and do not write to it.
        """
        for path in self._candidates(key):
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                self._give_up(error)
                continue
            if self._is_whole(path, found):
                return path
        return None

    def read(self, key: str) -> bytes | None:
        """The bytes that were kept under a key, or None."""
        for path in self._candidates(key):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                self._give_up(error)
                continue
            if self._is_whole(path, hashlib.sha256(content).hexdigest()):
                return content
        return None

    def add(self, key: str, source: Path) -> Path:
        """Keep a copy of a file.

        Returns:
            The copy, as `path` gives it; `source` where it could not be kept.

        Raises:
            OSError: the source cannot be read.
        """
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept = self._keep(key, digest, source.stat().st_size, _pieces(source))
        return source if kept is None else kept

    def write(self, key: str, content: bytes) -> None:
        """Keep bytes."""
        self._keep(key, hashlib.sha256(content).hexdigest(), len(content), [content])

    def _shard(self, key: str) -> tuple[Path, str] | None:
        """The folder of a key's entries, and what their names begin with."""
        if self._folder is None:
            return None
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2], name

    def _candidates(self, key: str) -> list[Path]:
        """The entries of a key, of which any will do."""
        place = self._shard(key)
        if place is None or not self._is_safe():
            return []
        folder, name = place
        try:
            return [Path(entry.path) for entry in os.scandir(folder) if entry.name[:64] == name]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []

    def _is_whole(self, path: Path, digest: str) -> bool:
        """Hold an entry against its name; note the use of a whole one, remove a damaged one."""
        match = _ENTRY.fullmatch(path.name)
        with suppress(OSError):  # it may be gone, or not ours to change
            if match is not None and match[1] == digest:
                os.utime(path)
                return True
            path.unlink()
        return match is not None and match[1] == digest

    def _keep(
        self, key: str, digest: str, size: int, pieces: Iterable[bytes | memoryview]
    ) -> Path | None:
        place = self._shard(key)
        if place is None or size > self._limit:
            return None
        folder, name = place
        target = folder / f"{name}-{digest}"
        try:
            assert self._folder is not None
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_safe():
                return None
            folder.mkdir(mode=0o700, exist_ok=True)
            # What a power cut leaves half written is found by its digest.
            replace_file(target, pieces, durable=False)
            self._make_room(size, target)
        except (OSError, ArtifactError) as error:
            self._give_up(error.__cause__ if isinstance(error, ArtifactError) else error)
            return None
        return target

    def _is_safe(self) -> bool:
        """Whether other users are kept from putting code there; see `_give_up` where not."""
        folder = self._folder
        if folder is None:
            return False
        try:
            status = folder.stat()
        except FileNotFoundError:
            return True
        except OSError as error:
            self._give_up(error)
            return False
        if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
            self._give_up(PermissionError(0, "other users can write to it"))
            return False
        return True

    def _make_room(self, added: int, newest: Path) -> None:
        """Remove the entries that were not used for the longest, if there are too many."""
        with self._guard:
            self._room -= added
            if self._room >= 0:
                return
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            for _, size, path in entries:
                if total <= self._limit:
                    break
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= size
            self._room = min(self._limit - total, self._limit // _SHARE)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use, size and path of each entry; what killed writers left is removed."""
        assert self._folder is not None
        for shard in os.scandir(self._folder):
            if len(shard.name) != 2 or not shard.is_dir():
                continue
            sweep_temporaries(Path(shard.path))
            for entry in os.scandir(shard):
                with suppress(FileNotFoundError):
                    if _ENTRY.fullmatch(entry.name):
                        status = entry.stat()
                        yield status.st_mtime_ns, status.st_size, Path(entry.path)

    def _give_up(self, error: BaseException | None) -> None:
        """Go on without."""
        folder, self._folder = self._folder, None
        if folder is not None:
            reason = error.strerror if isinstance(error, OSError) else None
            _warn(
                f"nothing is cached in {folder}: {reason or error}; {VARIABLE} names another "
                "folder, or is off"
            )


@functools.cache
def _warn(text: str) -> None:
    """Once for each text, however many stores are opened."""
    warnings.warn(text, stacklevel=2)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece
