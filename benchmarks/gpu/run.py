"""One run of the benchmark: plan, jobs within their time, result after each of them."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import driver, tables
from benchmarks.gpu.contents import Kit
from benchmarks.gpu.plan import SECONDS, Part, make_plan, select
from benchmarks.gpu.result import Result
from benchmarks.gpu.roofs import SHEETS
from benchmarks.gpu.supervisor import START_SECONDS, Clock, Supervisor
from nmcompile.errors import NmcompileError

LOG = "worker.log"
RESERVE = 5.0  # seconds for the tables


def main(
    folder: Path,
    command: Sequence[str],
    output: Path,
    seconds: float | None,
    only: Sequence[str],
) -> int:
    """Measure, print the tables; exit codes as `bench_gpu.main`."""
    missing = driver.is_missing()
    if missing is not None:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    supervisor = Supervisor(command, output / LOG)
    try:
        return _run(folder, supervisor, output, seconds or SECONDS, only)
    except NmcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; what was measured is in {output}", file=sys.stderr)
        return 130
    finally:
        supervisor.close()


def _run(
    folder: Path, supervisor: Supervisor, output: Path, seconds: float, only: Sequence[str]
) -> int:
    start = supervisor.clock()
    machine = supervisor.run({"kind": "hello"}, "start", start + START_SECONDS)
    if machine is None:
        for failure in supervisor.failures:
            print(f"error: {failure['failure']}", file=sys.stderr)
        return 2
    kit = Kit(folder, machine["arch"])
    result = Result(_digest(folder / f"{machine['arch']}.zip"), machine)
    path = output / f"{result.file_name}.json"
    result.take_over(path)
    result.machine["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _say(f"{machine['gpu']}, torch {machine['torch'] or 'missing: our figures only'}")
    if not result.roofs:
        roofs = supervisor.run({"kind": "roofs"}, "roofs", start + START_SECONDS)
        result.roofs = roofs or dataclasses.asdict(SHEETS[machine["arch"]])
    parts = select(make_plan(kit.contents, result.roofs), only)
    end, until = start + seconds - RESERVE, supervisor.clock()
    scale = (end - until) / max(sum(part.seconds for part in parts), 1.0)
    for part in parts:
        until += part.seconds * scale
        deadline = min(until, end) if part.seconds else end
        result.parts[part.name] = _measure(part, supervisor, deadline, result, path)
        result.save(path)
    text = tables.render(result)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    _say(f"{path} and .md")
    return 1 if any(result.failures()) else 0


def _measure(
    part: Part, supervisor: Supervisor, deadline: float, result: Result, path: Path
) -> dict[str, Any]:
    """The rows of one part, with those that failed or for which there was no time."""
    clock: Clock = supervisor.clock
    start = clock()
    supervisor.failures = []
    entry: dict[str, Any] = {"state": "done", "rows": [], "failures": supervisor.failures}
    if part.needs_torch and result.machine["torch"] is None:
        return {**entry, "state": f"skipped: {result.machine['torch_missing']}", "seconds": 0.0}
    for number, job in enumerate(part.jobs, 1):
        if clock() >= deadline:
            entry["state"] = f"{number - 1} of {len(part.jobs)} jobs: no time left"
            break
        _say(f"[{part.name} {number}/{len(part.jobs)}] {job.name}")
        limit = min(deadline, clock() + part.job_seconds)
        row = supervisor.run({**job.line, "loops": result.loops()}, job.name, limit)
        entry["rows"] += row if isinstance(row, list) else [] if row is None else [row]
        entry["seconds"] = clock() - start
        result.parts[part.name] = entry
        result.save(path)
    entry["seconds"] = clock() - start
    return entry


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
