"""The rows of the table, the most telling first: ours, and those that a user names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

from benchmarks.recipes import DENSE, Recipe, block_recipes, nm_recipes
from nmcompile.errors import InputError

NM_HIGH, NM_LOW, KEPT = "1:16", "2:4", 0.125
HIGH = (
    *("ASP, one-shot", "SR-STE", "1xN, one-shot", "SUBP", "LBC", "unstructured, one-shot"),
    *("SpRe over SR-STE", "SpRe over LBC", "1xN rearranged, one-shot", "SUBP by BPAR"),
    *("SUBP by L2", "SpRe over ASP"),
)
LOW = ("ASP, one-shot", "SR-STE", "LBC", "unstructured, one-shot")


def own_recipes() -> list[Recipe]:
    """Our implementations."""
    high = {recipe.title: recipe for recipe in (*nm_recipes(NM_HIGH), *block_recipes(KEPT))}
    low = {recipe.title: recipe for recipe in nm_recipes(NM_LOW)}
    return [DENSE, *(high[title] for title in HIGH), *(low[title] for title in LOW)]


def find_recipes(also: Iterable[str], only: Sequence[str]) -> list[Recipe]:
    """Ours and those of `also`, of which `only` picks by names or wildcards.

    Raises:
        InputError: a function cannot be called or returns something else, a name is there twice,
            or nothing fits.
    """
    found = own_recipes()
    for text in also:
        found += _load(text)
    names = [recipe.name for recipe in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two recipes are called {name!r}: give one of them another title")
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"--only {pattern}: expected one of {'; '.join(names)}")
    fits = [r for r in found if not only or any(fnmatchcase(r.name, p) for p in only)]
    return fits


def _load(text: str) -> list[Recipe]:
    source, _, attribute = text.rpartition(":")
    try:
        function = getattr(_module(source), attribute)
        found = list(function())
    except Exception as error:  # whatever other people's code raises
        raise InputError(
            f"--also {text}: {type(error).__name__}: {error}; expected MODULE:FUNCTION or "
            "FILE.py:FUNCTION, a function without arguments that returns recipes"
        ) from error
    for recipe in found:
        if not isinstance(recipe, Recipe):
            raise InputError(
                f"--also {text}: expected a list of benchmarks.recipes.Recipe, found "
                f"{type(recipe).__name__} in it"
            )
    return found


def _module(source: str) -> ModuleType:
    if not source.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(source)
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module
