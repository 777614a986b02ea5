"""How many examples a property is tried on."""

import os

from hypothesis import settings

THOROUGH = "NMCOMPILE_THOROUGH"
MORE = 10


def examples(few: int) -> settings:
    """`few` examples in `make test`, ten times as many in `make test-all`, which sets THOROUGH."""
    return settings(max_examples=few * (MORE if os.environ.get(THOROUGH) else 1), deadline=None)
