"""What the layers of a manifest say, read with care: their objects are free-form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FACTS: Mapping[str, tuple[type, ...]] = {
    "name": (str,), "op": (str,), "pattern": (str,), "axis": (str,), "kernel": (str,),
    "reason": (str,), "sparse": (bool,), "scattered": (bool,),
    "density": (int, float), "macs": (int, float), "violations": (int,),
    "shape": (list, tuple), "first_violation": (list, tuple), "model_shape": (list, tuple),
}  # fmt: skip


_CONTENT = re.compile(r"_[0-9a-f]{10}$")
"""Behind the name of a function, what is in it (`passes.lowering.naming`)."""


def plain_name(symbol: str) -> str:
    """The name of a function without the digest of what is in it."""
    return _CONTENT.sub("", symbol)


def known_facts(layer: Mapping[str, Any]) -> dict[str, Any]:
    """What of a free-form description of a layer is of the type that this version writes."""
    facts = {key: layer[key] for key, types in _FACTS.items() if type(layer.get(key)) in types}
    for key in ("shape", "first_violation", "model_shape"):
        if key in facts and not is_shape(facts[key]):
            del facts[key]
    also = layer.get("also")
    if isinstance(also, list | tuple) and all(type(name) is str for name in also):
        facts["also"] = list(also)
    return facts


def is_shape(found: object) -> bool:
    """Whether something from a manifest is a list of dimensions, or of positions along axes."""
    # At the first call: the command line loads no runtime to say that a word is misspelt.
    from nmcompile.runtime.strict_json import MAX_ELEMENTS, MAX_RANK

    return (
        isinstance(found, list | tuple)
        and len(found) <= MAX_RANK
        and all(type(number) is int and 0 <= number <= MAX_ELEMENTS for number in found)
    )
