"""Maps of weights as the page draws them: pictures of bits, and the words beside them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError
from nmcompile.viewer.weights import WeightMap, describe, group_words, weight_map

Array = npt.NDArray[Any]

BINS: Final = (96, 384)
"""Most rows and columns of the overview."""
CORNER: Final = (128, 1152)
"""Most rows and columns that can be looked at weight by weight, of a weight that is not `whole`."""
WHOLE: Final = 1 << 22
"""Most weights of one map that are all there."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One map.

    overview, cells: PNG files as data addresses: shares of non-zeros, and non-zeros one by one.
    said: what is shown, one sentence each.
    data: what the page's script has to know, as JSON.
    """

    name: str
    said: Sequence[str]
    overview: str
    cells: str
    data: str


def make_picture(name: str, found: WeightMap, whole: bool) -> Picture:
    """Draw a map.

    Args:
        name: of the layer.
        found: its weights.
        whole: whether each weight is to be looked at, as far as `WHOLE` allows; else a corner is.

    Raises:
        InputError: pillow is not installed.
    """
    bins, steps = found.binned(*BINS)
    size = found.mask.shape
    most = size if whole and found.mask.size <= WHOLE else CORNER
    cells = found.mask[: most[0], : most[1]]
    height, width = found.block
    said = [*describe(found), *filter(None, [group_words(found)])]
    if steps != (1, 1):
        said.append(
            f"of {size[0]} x {size[1]} weights a cell of the overview is {steps[0]} x {steps[1]} "
            "of them, and as dark as the share of them that is kept"
        )
    if cells.shape != size:
        said.append(
            f"weight by weight are shown the first {cells.shape[0]} rows and {cells.shape[1]} "
            "columns"
        )
    scattered = bool((np.diff(found.channels) < 0).any())
    data = {
        "shape": found.shape,
        "order": found.order,
        "size": size,
        "block": [height, width],
        "steps": steps,
        "runsOn": found.runs_on,
        "channels": found.channels.tolist() if scattered else None,
    }
    shades = np.round(bins * 255).astype(np.uint8)
    return Picture(name, said, _png(shades), _png(cells), json.dumps(data))


def _png(array: Array) -> str:
    """A data address: 8 bits a cell, or one of a bool array."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "maps of weights need pillow, which is not installed: pip install 'nmcompile[html]'"
        ) from error
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


MOST: Final = 64
"""Maps on a page for which none was asked by name."""


def make_pictures(
    weights: Mapping[str, Array | None], work: Mapping[str, float], wanted: Sequence[str]
) -> tuple[list[Picture], str]:
    """The maps of a page.

    Args:
        weights: of every layer, as `weight_map` takes them.
        work: multiply-accumulates by layer.
        wanted: layers by name, wildcards as in layer1.*; where it is empty, those with zeros.

    Returns:
        The maps, and what to say about those that are not there, or "".

    Raises:
        InputError: no layer is called so, the weight of one that is cannot be read, or pillow is
            missing.
    """
    if wanted:
        names = chosen_layers(list(weights), wanted)
        maps = {name: weight_map(readable(weights[name], name)) for name in names}
        return [make_picture(name, found, whole=True) for name, found in maps.items()], ""
    zeros = [name for name, weight in weights.items() if weight is not None and not weight.all()]
    names = sorted(zeros, key=lambda name: -work.get(name, 0.0))[:MOST]
    kept = [name for name in zeros if name in names]
    maps = {name: weight_map(readable(weights[name], name)) for name in kept}
    whole = sum(found.mask.size for found in maps.values()) <= WHOLE
    pictures = [make_picture(name, found, whole) for name, found in maps.items()]
    said = []
    if len(zeros) > MOST:
        said.append(f"Of {len(zeros)} layers with zeros these are the {MOST} with most to compute.")
    elif not zeros:
        said.append("No layer has weights that are zero.")
    if not whole:
        said.append("`nmc inspect --layer NAME` shows all weights of a layer one by one.")
    return pictures, " ".join(said)


def chosen_layers(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The layers that are called so, in the order of the model.

    Raises:
        InputError: a name or wildcard fits none.
    """
    found = set[str]()
    for pattern in wanted:
        fitting = [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]
        if not fitting:
            near = get_close_matches(pattern, names, 3, 0.5) or list(names[:5])
            raise InputError(
                f"no layer is called {pattern!r}: expected a name or wildcard of one of "
                f"{len(names)} layers, such as {', '.join(near) or 'none'}; nmc inspect lists them"
            )
        found.update(fitting)
    return [name for name in names if name in found]


def readable(weight: Array | None, name: str) -> Array:
    """A weight that is there.

    Raises:
        InputError: it is not.
    """
    if weight is None:
        raise InputError(
            f"layer {name}: its weight cannot be read from the model, so it cannot be shown; "
            "nmc inspect says why"
        )
    return weight
