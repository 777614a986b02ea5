"""Reads modules and single functions out of checkouts of other people's repositories.

Their training scripts parse command lines, import data loaders and want a GPU as soon as they are
imported. What trains is in a few modules and functions, which run anywhere.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def importable(root: Path, stubs: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Makes modules below `root` importable by their own names, and forgets them afterwards.

    Args:
        root: of the checkout, or the folder in it that its scripts are started from.
        stubs: attributes of modules that stand in for others. Packages of the checkout are
            imported without their `__init__`.
    """
    before = dict(sys.modules)
    packages = [path for path in root.rglob("__init__.py") if ".git" not in path.parts]
    folders = {path.parent for path in packages} | {p for p in root.iterdir() if p.is_dir()}
    for folder in sorted(folders):
        package = ModuleType(".".join(folder.relative_to(root).parts))
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
    for name, attributes in stubs.items():
        module = ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module
    sys.path.insert(0, str(root))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(root))
        theirs = {path.stem for path in root.iterdir()} | set(stubs)
        for name in set(sys.modules) - set(before):
            if name in theirs or name.partition(".")[0] in theirs:
                del sys.modules[name]
        sys.modules.update(before)


def module(root: Path, name: str, **stubs: Mapping[str, Any]) -> Any:
    """Import one module of a checkout; in the names of stubs `__` stands for a dot."""
    with importable(root, {key.replace("__", "."): value for key, value in stubs.items()}):
        return importlib.import_module(name)


def functions(path: Path, names: list[str], scope: dict[str, Any]) -> dict[str, Any]:
    """Define only these functions of a script, with the globals of `scope`."""
    tree = ast.parse(path.read_text())
    body: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    assert len(body) == len(names), f"{path} lacks one of {names}"
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)
    return scope


def assignment(path: Path, name: str) -> Any:
    """The code of the right-hand side of the only assignment to `name` in a script."""
    found = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    assert len(found) == 1, f"{path} assigns {name} {len(found)} times"
    return compile(ast.Expression(found[0]), str(path), "eval")


def commit(root: Path) -> str:
    """Of the checkout."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
