"""What `torch.compile(model, backend="nmcompile", options={...})` may say."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nmcompile.errors import InputError
from nmcompile.precision import INT8, INT8_TARGET
from nmcompile.runtime import cpu
from nmcompile.sparsity import parse_pattern
from nmcompile.targets import BF16, Target, find_target

FLOAT32 = "float32"
PRECISIONS = (FLOAT32, BF16, INT8)


@dataclass(frozen=True)
class Options:
    """Options of the backend.

    pattern: "auto" takes what every layer holds; "2:4", "1x16", ... is verified first; "dense"
        ignores all zeros.
    precision: "float32"; "bf16", see `nmcompile.compile`; or "int8", for graphs that are quantised.
    target: a name of `nmc targets` for CPUs; None for the one that the precision needs.
    threads: cores that a run uses; None for as many as torch.
    cache: a folder for what was compiled, or "off"; None for `NMCOMPILE_CACHE`, else the user's.
    strict: whether a graph whose layers torch would have to run is an error instead of a warning.
    """

    pattern: str = "auto"
    precision: str = FLOAT32
    target: str | None = None
    threads: int | None = None
    cache: str | None = None
    strict: bool = False

    @property
    def chosen(self) -> Target:
        """The target."""
        return find_target(self.target or _default_target(self.precision))


def read_options(given: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Options:
    """Check options.

    Args:
        given: torch.compile's `options`.
        more: what else torch.compile hands over: `mode`.

    Raises:
        InputError: an option is unknown, or its value is none that it takes.
        PatternError: the pattern is malformed.
        TargetError: the target is unknown, or does not compute in the precision.
    """
    names = [field.name for field in fields(Options)]
    for name in more:
        raise InputError(
            f"torch.compile(backend='nmcompile'): {name} is unknown here; expected options="
            f"{{...}} with some of {', '.join(names)}, found {name}={more[name]!r}"
        )
    for name in given or {}:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"option {name!r} of the backend nmcompile is unknown; expected one of "
                f"{', '.join(names)}{hint}"
            )
    values = dict(given or {})
    if isinstance(values.get("cache"), os.PathLike):
        values["cache"] = os.fspath(values["cache"])
    options = Options(**values)
    _check(options)
    return options


def _check(options: Options) -> None:
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "pattern": ((str,), "a pattern such as '2:4'"),
        "precision": ((str,), "one of " + ", ".join(PRECISIONS)),
        "target": ((str, type(None)), "the name of a target"),
        "threads": ((int, type(None)), "a number of at least 1"),
        "cache": ((str, type(None)), "a folder or 'off'"),
        "strict": ((bool,), "True or False"),
    }
    for name, (accepted, text) in kinds.items():
        value = getattr(options, name)
        wrong = not isinstance(value, accepted) or (name == "threads" and isinstance(value, bool))
        wrong = wrong or (name == "threads" and value is not None and value < 1)
        wrong = wrong or (name == "precision" and value not in PRECISIONS)
        if wrong:
            raise InputError(
                f"option {name!r} of the backend nmcompile: expected {text}, found {value!r}"
            )
    if options.pattern not in ("auto", "dense"):
        parse_pattern(options.pattern)
    target = options.chosen
    if target.arch:
        raise InputError(
            f"option 'target' of the backend nmcompile: expected a target for CPUs, found "
            f"{target.name}; compile for a GPU with nmcompile.compile"
        )
    if (options.precision == BF16 and not target.bfloat16) or (
        options.precision == INT8 and not target.integers
    ):
        raise InputError(
            f"option 'target' of the backend nmcompile: {target.name} does not compute in "
            f"{options.precision}; leave it out for one that does"
        )


def _default_target(precision: str) -> str:
    if precision == BF16:
        return "avx512_amx" if cpu.TILES in cpu.host()[1] else "avx512_bf16"
    return INT8_TARGET if precision == INT8 else "avx512"
