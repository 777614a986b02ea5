"""From lists of models, patterns, engines and so on to the cases, and which of them take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nmcompile.bench.engines.table import OURS, EngineRow
from nmcompile.bench.forms import dtype_of
from nmcompile.errors import PatternError
from nmcompile.sparsity import Dense, OneByN, Pattern, Unstructured, parse_wanted

AS_IS = "as-is"


@dataclass(frozen=True)
class PatternSpec:
    """What is asked of a model's weights.

    text: as in results; "" where they stay as they are.
    pattern: None where they stay.
    density: share to keep, for 1xN and unstructured.
    """

    text: str
    pattern: Pattern | None = None
    density: float | None = None

    @property
    def changes_weights(self) -> bool:
        """Whether weights are projected: "dense" only ignores their zeros."""
        return self.pattern is not None and not isinstance(self.pattern, Dense)


def parse_spec(text: str) -> PatternSpec:
    """Read "as-is", "dense", "2:4", "2:4@flat", "1x16@0.5" or "unstructured@0.1".

    Raises:
        PatternError: it is none of them, or a density is missing, superfluous or no share.
    """
    word = text.strip().lower()
    if word in (AS_IS, ""):
        return PatternSpec("")
    wanted = parse_wanted(text)
    if isinstance(wanted.pattern, OneByN | Unstructured) and wanted.density is None:
        raise PatternError(
            f"pattern {text!r}: expected the share of weights to keep behind it, above 0 and at "
            f"most 1, found none; write {wanted}@0.5"
        )
    return PatternSpec(str(wanted), wanted.pattern, wanted.density)


@dataclass(frozen=True)
class Setting:
    """One case before it is measured; target: what ours is compiled for (`forms`), else ""."""

    pattern: PatternSpec
    engine: EngineRow
    target: str = ""

    @property
    def dtype(self) -> str:
        """That it computes in."""
        if not self.target:
            return self.engine.dtype
        return dtype_of(self.target)


@dataclass(frozen=True)
class Group:
    """Cases that take turns: one model, batch and number of threads.

    batch: None for what the model itself says.
    """

    model: str
    batch: int | None
    threads: int
    settings: tuple[Setting, ...]


def expand(
    models: Sequence[str],
    patterns: Sequence[PatternSpec],
    targets: Sequence[str],
    threads: Sequence[int],
    batches: Sequence[int | None],
    engines: Sequence[EngineRow],
) -> list[Group]:
    """All groups, model by model, with our cases first.

    An engine that does not see zeros runs once per group: with the weights as they are.
    """
    settings: list[Setting] = []
    for engine in sorted(engines, key=lambda row: row.name != OURS):
        if engine.sees_zeros:
            for pattern in patterns:
                for target in targets if engine.name == OURS else [""]:
                    settings.append(Setting(pattern, engine, target))
        else:
            settings.append(Setting(base_of(patterns), engine))
    return [
        Group(model, batch, count, tuple(settings))
        for model in models
        for batch in batches
        for count in threads
    ]


def base_of(patterns: Sequence[PatternSpec]) -> PatternSpec:
    """What engines that do not see zeros run: weights that no pattern has changed."""
    as_is = PatternSpec("")
    return as_is if as_is in patterns else PatternSpec("dense", Dense())
