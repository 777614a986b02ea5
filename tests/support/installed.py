"""Environments as pip would make them, without a network: from what this Python has installed."""

import importlib.metadata
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def environment(folder: Path, wheel: Path, extras: Sequence[str] = ()) -> Path:
    """The Python of a new environment with a wheel, and what the wheel says that it requires.

    Packages are links to those of this Python; the wheel is installed by pip.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("nmcompile-*.dist-info")
    ours = importlib.metadata.Distribution.at(metadata)
    for name in required(ours, extras) - {"nmcompile"}:
        link_package(importlib.metadata.distribution(name), packages)
    return python


def required(package: importlib.metadata.Distribution, extras: Sequence[str]) -> set[str]:
    """The names of all that a package requires, and what these require, with some of its extras."""
    found: set[str] = set()
    todo = [(package, extra) for extra in ("", *extras)]
    seen = set()
    while todo:
        owner, extra = todo.pop()
        if (owner.name, extra) in seen:
            continue
        seen.add((owner.name, extra))
        for requirement in map(Requirement, owner.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name = canonicalize_name(requirement.name)
                found.add(name)
                other = package if name == package.name else importlib.metadata.distribution(name)
                todo += [(other, wanted) for wanted in ("", *requirement.extras)]
    return found


def link_package(package: importlib.metadata.Distribution, packages: Path) -> None:
    """Link what a package has at the top of site-packages."""
    root = Path(str(package.locate_file("")))
    for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(root / top)
