"""A Python that has nothing installed."""

import venv
from pathlib import Path

import numpy as np


def python_with_numpy(folder: Path, numpy: bool = True) -> Path:
    """A Python with numpy, the one of these tests, and nothing else."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs") if numpy else ():
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    return folder / "bin" / "python"
