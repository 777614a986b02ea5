"""Hints are in the user's words: options of the command at hand, or Python's arguments."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmcompile.wording import speaking, way

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w,-])--[a-z][a-z-]+")
ELSEWHERE = re.compile(r"`nmc [^`]*(`|$)")  # a whole command may be named anywhere
# Programs of their own, what calls another, and what only the command line reaches.
COMMANDS = (
    "nmcompile/cli/",
    "nmcompile/bench/",
    "nmcompile/bundle/",
    "nmcompile/kernels/cuda/build",
    "nmcompile/linking",
    "nmcompile/machine/describe",
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (None, "shapes={'x': (1,)}"),
        ({"--shape", "--json"}, "--shape x=1"),
        ({"--shapes"}, "--shapes x=1"),
        ({"--json"}, "`nmc compile --shape x=1`"),
    ],
)
def test_a_hint_names_the_option_at_hand(options: set[str] | None, said: str) -> None:
    if options is None:
        assert way("--shape x=1", "shapes={'x': (1,)}") == said
        return
    with speaking(options):
        assert way("--shape x=1", "shapes={'x': (1,)}") == said
    assert way("--shape x=1", "shapes") == "shapes"


def test_of_several_options_those_stay_that_the_command_has() -> None:
    with speaking({"--density", "--pattern"}):
        assert way("--enforce --density 0.5", "pruning") == "--density 0.5"


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of strings outside calls of `way`; docstrings and lone strings are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "way":
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        yield from texts(node)


def test_the_library_names_no_option_of_its_own_accord() -> None:
    found = []
    for top in ("nmcompile", "passes", "runtime"):
        for path in sorted((ROOT / top).rglob("*.py")):  # rglob does not follow the links
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(COMMANDS):
                continue
            for line, text in texts(ast.parse(path.read_text())):
                if OPTION.search(ELSEWHERE.sub("", text)):
                    found.append(f"{name}:{line}: {text[:60]}")
    assert found == []
