"""How many examples a property is tried on."""

import os

from hypothesis import settings

MORE = 10


def is_thorough() -> bool:
    """Whether this is the long run, `make test-all`."""
    return bool(os.environ.get("NMCOMPILE_THOROUGH"))


def examples(few: int) -> settings:
    """`few` examples in `make test`, ten times as many in `make test-all`."""
    return settings(max_examples=few * (MORE if is_thorough() else 1), deadline=None)
