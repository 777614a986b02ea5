"""What shells complete: targets, engines, patterns, models and compiled models.

`nmc --install-completion` installs it. Completing a word imports nothing that takes long.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PATTERNS = ("2:4", "2:4@flat", "1:4", "1:16", "1x16", "1x16@0.5", "unstructured@0.1", "dense")
"""The patterns that published models have, spelled as anywhere."""


def complete_target(incomplete: str) -> list[str]:
    """Names of targets."""
    from nmcompile.targets import CUDA, TARGETS

    return _starting((*(target.name for target in TARGETS), CUDA), incomplete)


def complete_form(incomplete: str) -> list[str]:
    """Lists of targets, with the precision that `nmc bench` compiles for."""
    from nmcompile.targets import BF16, TARGETS

    rounded = [f"{target.name}:{BF16}" for target in TARGETS if target.bfloat16]
    return _in_list([*complete_target(""), *rounded], incomplete)


def complete_pattern(incomplete: str) -> list[str]:
    """Patterns."""
    return _starting(PATTERNS, incomplete)


def complete_pattern_or_auto(incomplete: str) -> list[str]:
    """Patterns, and auto."""
    return _starting(("auto", *PATTERNS), incomplete)


def complete_patterns(incomplete: str) -> list[str]:
    """Lists of what weights are pruned to."""
    complete = [name for name in PATTERNS if name != "1x16"]  # its density is needed here
    return _in_list(("as-is", *complete), incomplete)


def complete_engines(incomplete: str) -> list[str]:
    """Lists of engines to measure against."""
    from nmcompile.bench.engines.table import ENGINES, OURS

    names = [row.name for row in ENGINES if row.name != OURS]
    return _in_list((*names, "all"), incomplete)


def complete_artifact(incomplete: str) -> list[str]:
    """Compiled models, and folders on the way to them."""
    return _files(incomplete, ".nmc")


def complete_onnx(incomplete: str) -> list[str]:
    """ONNX files, and folders on the way to them."""
    return _files(incomplete, ".onnx")


def complete_model(incomplete: str) -> list[str]:
    """ONNX files and compiled models, and folders on the way to them."""
    return _files(incomplete, ".onnx", ".nmc")


def complete_bench(incomplete: str) -> list[str]:
    """What may stand behind `nmc bench`: models, and its other commands."""
    return _starting(("compare", "report"), incomplete) + complete_model(incomplete)


def _starting(words: Iterable[str], begin: str) -> list[str]:
    return [word for word in words if word.startswith(begin)]


def _in_list(words: Iterable[str], begin: str) -> list[str]:
    """The last word of a list `a,b`; those that are in it already are left out."""
    before, comma, last = begin.rpartition(",")
    named = before.split(",")
    return [f"{before}{comma}{w}" for w in words if w.startswith(last) and w not in named]


def _files(begin: str, *suffixes: str) -> list[str]:
    folder, _, name = begin.rpartition("/")
    base = Path(f"{folder}/" if begin.startswith("/") and not folder else folder or ".")
    shown = f"{folder}/" if "/" in begin else ""
    found = []
    try:
        entries = sorted(os.scandir(base.expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in entries:
        if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
            continue
        if entry.is_dir():
            found.append(f"{shown}{entry.name}/")
        elif entry.name.endswith(suffixes):
            found.append(f"{shown}{entry.name}")
    return found
