"""A reader of the documentation, who types its code blocks one after the other."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner

from docs.generate.blocks import Block
from docs.generate.pages import ROOT
from nmcompile.cli import app


class Reader:
    """Runs blocks in one namespace, in the current folder.

    `nmc` runs in this process, which has everything loaded; of `make` only the goals are checked,
    because what they do is what runs this. Anything else is a program of this environment.
    """

    def __init__(self, values: Mapping[str, object], placeholders: Mapping[str, str]) -> None:
        """Set what the first block finds.

        Args:
            values: names that a page takes for granted.
            placeholders: what stands for capital words of a page, such as HOST:9190.
        """
        self.values = dict(values)
        self.placeholders = placeholders

    def run(self, block: Block) -> str:
        """Run a block; returns what it printed.

        Raises:
            AssertionError: a command fails.
        """
        if block.language == "python":
            return self._python(block)
        commands = block.code.replace("\\\n", " ").splitlines()
        return "".join(self._command(command) for command in commands)

    def _python(self, block: Block) -> str:
        # As many lines before it as the page has, so that a traceback leads there.
        code = compile("\n" * (block.line - 1) + block.code, block.source, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.values)
        return printed.getvalue()

    def _command(self, line: str) -> str:
        for word, value in self.placeholders.items():
            line = line.replace(word, value)
        words = shlex.split(line, comments=True)
        if not words:
            return ""
        if words[0] == "nmc":
            done = CliRunner().invoke(app, [name for word in words[1:] for name in _globbed(word)])
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
            return done.stdout
        if words[0] == "make":
            words, folder = ["make", "-n", *words[1:]], ROOT
        else:
            folder = Path.cwd()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        made = subprocess.run(
            *(words,),
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, f"{line}\n{made.stdout}\n{made.stderr}"
        return "" if words[0] == "make" else made.stdout


def _globbed(word: str) -> list[str]:
    return sorted(glob.glob(word)) or [word]
