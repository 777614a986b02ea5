"""What is measured, the most important first, and the time that each part may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.contents import Contents
from nmcompile.errors import InputError

SECONDS = 570.0  # of all parts together
BARS_BATCH = 64  # the batch of the bars
PATTERNS = ("1:4", "1:8", "1:16")
JOB_SECONDS = 60.0  # of one layer: more means that something hangs


@dataclass(frozen=True)
class Job:
    """A line for the worker, and what to call it."""

    name: str
    line: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Jobs whose rows belong together.

    seconds: its share of the whole time, in relation to the other parts'; what a part leaves over
        is there for those behind it. 0: whatever is left. needs_torch: whether it is about torch.
    """

    name: str
    jobs: tuple[Job, ...]
    seconds: float
    job_seconds: float = JOB_SECONDS
    needs_torch: bool = False


def make_plan(contents: Contents, roofs: dict[str, Any]) -> list[Part]:
    """All parts, in order. Torch's compiler comes early for the batch of the bars, else last."""
    batches = sorted({layer.conv.batch for layer in contents.layers}, reverse=True)
    parts = []
    for batch in batches:
        first = batch == BARS_BATCH
        parts.append(_layers(contents, batch, roofs, 150.0 if first else 65.0))
        parts.append(_model(contents, batch, False, 45.0 if first else 25.0))
        if first:
            parts.append(_model(contents, batch, True, 145.0))
    parts.append(_patterns(contents, 50.0))
    parts += [_model(contents, batch, True, 0.0) for batch in batches if batch != BARS_BATCH]
    return [part for part in parts if part.jobs]


def select(plan: Sequence[Part], words: Sequence[str]) -> list[Part]:
    """The parts of these names or kinds ("layers-64", "model"); all for no words.

    Raises:
        InputError: a word means no part.
    """
    chosen: list[Part] = []
    for word in words:
        found = [part for part in plan if word in (part.name, part.name.partition("-")[0])]
        if not found:
            names = ", ".join(part.name for part in plan)
            raise InputError(f"--parts {word}: expected some of {names}, or layers, model, ...")
        chosen += found
    return [part for part in plan if part in chosen] if words else list(plan)


def _layers(contents: Contents, batch: int, roofs: dict[str, Any], seconds: float) -> Part:
    jobs = tuple(
        Job(layer.name, {"kind": "layer", "index": index, "roofs": roofs})
        for index, layer in enumerate(contents.layers)
        if layer.conv.batch == batch
    )
    return Part(f"layers-{batch}", jobs, seconds)


def _model(contents: Contents, batch: int, compiled: bool, seconds: float) -> Part:
    jobs = tuple(
        Job(
            f"resnet50 {model.pattern} b{batch}{' against torch.compile' if compiled else ''}",
            {
                "kind": "model",
                "index": index,
                "pattern": model.pattern,
                "compiled": compiled,
                "timed": True,
            },
        )
        for index, model in enumerate(contents.models)
        if model.batch == batch
    )
    name = f"{'compiled' if compiled else 'model'}-{batch}"
    return Part(name, jobs, seconds, 600.0 if compiled else JOB_SECONDS, compiled)


def _patterns(contents: Contents, seconds: float) -> Part:
    """Sparser patterns through the same kernels: whole models, then every layer."""
    jobs = []
    for index, model in enumerate(contents.models):
        jobs += [
            Job(
                f"resnet50 {pattern} b{model.batch}",
                {
                    "kind": "model",
                    "index": index,
                    "pattern": pattern,
                    "compiled": False,
                    "timed": False,
                },
            )
            for pattern in PATTERNS
            if pattern in model.references
        ]
    smallest = min((layer.conv.batch for layer in contents.layers), default=0)
    jobs += [
        Job(f"{layer.name} {pattern}", {"kind": "check", "index": index, "pattern": pattern})
        for pattern in PATTERNS
        for index, layer in enumerate(contents.layers)
        if layer.conv.batch == smallest and layer.pattern != "dense"
    ]
    return Part("patterns", tuple(jobs), seconds)
