"""Numbers in words."""

import math

_PREFIXES = ("", "k", "M", "G", "T", "P")


def count(number: float) -> str:
    """A count with a decimal prefix, such as 4.1 G."""
    if number < 1000:
        return f"{number:.0f}"
    power = min(int(math.log10(number)) // 3, len(_PREFIXES) - 1)
    return f"{number / 1000**power:.3g} {_PREFIXES[power]}"
