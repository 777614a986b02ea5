"""Pages that are made of the code: the command reference and the Python reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import griffe

from docs.generate.pages import ROOT

MODULES = ("runtime", "train", "devices", "errors")
"""Public beside `nmcompile` itself: what is in their `__all__`, else their classes."""

HEAD = """\
# {module}

{docstring}

"""


def write_reference(folder: Path) -> None:
    """Write the generated pages into `folder`."""
    pages = {"reference/commands.md": commands()}
    package = griffe.load("nmcompile", search_paths=[ROOT])  # reads the source, imports nothing
    for module in ("", *MODULES):
        found = package[module] if module else package
        pages[f"reference/{module or 'nmcompile'}.md"] = python(found)
    for page, text in pages.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")


def commands() -> str:
    """The command reference, as typer writes it of the application.

    Raises:
        RuntimeError: typer fails.
    """
    command = (sys.executable, "-m", "typer", "nmcompile.cli.app", "utils", "docs", "--name", "nmc")
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{made.stderr}")
    return made.stdout.replace("# `nmc`\n", "# Commands\n", 1)


def python(module: griffe.Object | griffe.Alias) -> str:
    """One entry per public name, which mkdocstrings fills from its docstring."""
    names = module.exports if module.exports is not None else module.classes
    docstring = module.docstring.value if module.docstring else ""
    entries = "\n".join(_entry(module, str(name)) for name in names)
    return HEAD.format(module=f"`{module.path}`", docstring=docstring) + entries


def _entry(module: griffe.Object | griffe.Alias, name: str) -> str:
    found, path = module[name], f"{module.path}.{name}"
    if not found.is_module:
        return f"::: {path}\n"
    if name in MODULES:
        return f"## [`{path}`]({name}.md)\n"
    # The file of a function that is called like it.
    own = found[name].path
    options = f"    options:\n      heading: {path}\n      toc_label: {name}\n"
    return f"::: {own}\n{options}"
