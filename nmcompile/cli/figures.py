"""What all pictures share: matplotlib, if it is there, and a file or an error that says why."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from nmcompile.errors import ArtifactError, InputError

GROUND, INK = "#fafafa", "#24292f"  # an own light ground: readable on dark pages too


def load_pyplot() -> Any:
    """Matplotlib's pyplot, drawing without a screen.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            "--plot needs matplotlib, which is not installed: pip install 'nmcompile[bench]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix, and close it.

    Raises:
        ArtifactError: it cannot be written.
    """
    from nmcompile.runtime.files import replace_file

    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=144, facecolor=GROUND, format=path.suffix.lstrip(".") or "png")
    except ValueError as error:
        raise ArtifactError(
            f"cannot write the plot {path}: {error}; name a file like layers.png"
        ) from error
    finally:
        load_pyplot().close(figure)
    replace_file(path, [drawn.getvalue()])
