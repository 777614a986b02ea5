"""The file of finished runs: a line of JSON for each, behind one that says how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fashion.jobs import Budget, Job, Outcome
from nmcompile.errors import InputError
from nmcompile.runtime.files import replace_file


class Results:
    """Finished runs, kept in a file.

    The file is always whole: it is written anew behind every run, and replaces the one before.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        """Read what is there.

        Raises:
            InputError: the file is not one of these, or its runs had another budget.
        """
        self.path = path
        self.done: dict[Job, Outcome] = {}
        self._head: dict[str, Any] = {"budget": {**asdict(budget), "rates": list(budget.rates)}}
        if path.exists():
            self._read()

    def add(self, outcome: Outcome) -> None:
        """Keep a run.

        Raises:
            ArtifactError: the file cannot be written; it is as it was.
        """
        self.done[outcome.job] = outcome
        lines = [self._head, *map(asdict, self.done.values())]
        replace_file(self.path, [b"".join(json.dumps(line).encode() + b"\n" for line in lines)])

    def _read(self) -> None:
        try:
            head, *lines = map(json.loads, self.path.read_text().splitlines())
            found = [Outcome(**{**line, "job": Job(**line["job"])}) for line in lines]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"cannot read {self.path}: {error}; expected lines that this benchmark wrote: name "
                "another --output, or remove it"
            ) from error
        if head != self._head:
            raise InputError(
                f"{self.path} has runs of {json.dumps(head)}, expected {json.dumps(self._head)}: "
                "name another --output to keep both, or remove it"
            )
        self.done = {outcome.job: outcome for outcome in found}
