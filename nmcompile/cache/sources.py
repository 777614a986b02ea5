"""What code computed something, by its content: a version number stays while it is worked on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def source_digest(folders: Iterable[Path]) -> str:
    """The sha256, in hex, of the Python files in folders and below, and of their paths there."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
