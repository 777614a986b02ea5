"""What a user asks of tuning."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmcompile.devices import Fleet


@dataclass(frozen=True)
class Tuning:
    """How `nmcompile.compile` knows which kernel is the fastest for a layer.

    Attributes:
        database: a JSON file of measurements to choose by, extended with `measure`; None keeps
            nothing.
        measure: whether to measure the candidates of every layer on this machine's CPU or GPU,
            which must be one of the target's; what `database` knows already is not measured again.
        on: devices to measure on instead; they have one kind of CPU, which the model is then
            compiled for. Only with `measure`.
        cpu: a part of the name of the CPU model whose measurements in `database` are to choose by,
            without `measure`; None for this machine's.
    """

    database: str | os.PathLike[str] | None = None
    measure: bool = False
    on: Fleet | None = None
    cpu: str | None = None
