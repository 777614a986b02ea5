"""A case before it is measured: all that its place in the matrix says about it."""

from __future__ import annotations

from nmcompile.bench.matrix import Group, Setting
from nmcompile.bench.results import LOCAL, Case
from nmcompile.bench.variants import Compiled, Variant


def new_case(
    group: Group, setting: Setting, variant: Variant | None, compiled: Compiled | None = None
) -> Case:
    """A case on this machine, without samples.

    Args:
        group: cases that take turns with it.
        setting: which of them it is.
        variant: the model with its weights; None where it could not be made.
        compiled: what an engine that takes artifacts has loaded.
    """
    batch = variant.batch if variant is not None else group.batch or 1
    threads = f"{group.threads} thread{'s' * (group.threads > 1)}"
    return Case(
        group=f"{group.model}, batch {batch}, {threads}",
        model=group.model,
        engine=setting.engine.name,
        engine_version="",
        pattern=setting.pattern.text,
        density=variant.density if variant is not None else 1.0,
        target=compiled.target if compiled is not None else setting.target,
        dtype=compiled.dtype if compiled is not None else setting.dtype,
        threads=group.threads,
        batch=batch,
        device=LOCAL,
        samples_ms=[],
        noise="quiet",
        noise_reason="",
        accuracy=None,
        artifact=compiled.facts if compiled is not None else None,
        layers=[],
        error=None,
    )
