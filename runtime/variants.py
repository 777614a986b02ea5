"""A model for several shapes of its inputs: what each of them is, and which of them a run takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nmcompile.errors import ArtifactError
from nmcompile.runtime.specs import Call, TensorSpec
from nmcompile.runtime.steps import Step, check_binding

Shapes = Sequence[tuple[int, ...]]
"""Of the inputs, in the order of the manifest."""


@dataclass(frozen=True)
class Variant:
    """The model for one shape of each of its inputs.

    entry: the function of the library that computes it; "" where there are steps.
    inputs, outputs: what the model takes and returns.
    weights: which of the weights `entry` takes behind the inputs, in this order: positions in the
        manifest's `params`, or in what `prepare` makes of them.
    calls: its kernel calls, in execution order.
    steps, values: as those of `Manifest`, where onnxruntime runs parts.
    """

    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[int, ...]
    calls: tuple[Call, ...] = ()
    workspace_bytes: int = 0
    steps: tuple[Step, ...] = ()
    values: tuple[TensorSpec, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs, by name."""
        return {spec.name: spec.shape for spec in self.inputs}

    def specs(self, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        """What is known of these inputs, outputs and values."""
        known = {spec.name: spec for spec in (*self.inputs, *self.outputs, *self.values)}
        return tuple(known[name] for name in names)


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` of a batch, which a variant runs; all of it if `start` is None."""

    variant: int
    start: int | None = None
    stop: int | None = None

    def of(self, value: Any) -> Any:
        """Its images of a batched input."""
        return value if self.start is None else value[self.start : self.stop]


def spell_specs(specs: Sequence[TensorSpec]) -> str:
    """For example ``x float32 1x3x224x224, mask bool 1``."""
    return ", ".join(map(str, specs)) or "nothing"


def spell_forms(forms: Iterable[Variant]) -> str:
    """What goes in and comes out: ``x float32 1x3x8x8 -> y float32 1x10``."""
    return spell_all(f"{spell_specs(form.inputs)} -> {spell_specs(form.outputs)}" for form in forms)


def spell_all(spelled: Iterable[str]) -> str:
    """What several variants have, each of them once."""
    return " or ".join(dict.fromkeys(spelled))


def check_variants(
    where: str, variants: Sequence[Variant], batched: Sequence[str], weights: int | None
) -> None:
    """Hold the variants of a manifest against each other.

    Args:
        where: what to call the manifest in messages.
        variants: at least one.
        batched: names of inputs that hold one row for each image of a batch.
        weights: how many there are; None where `prepare` says, or the steps do.

    Raises:
        ArtifactError: names the first variant that is wrong, what was expected and what was found.
    """
    if len(variants) < 2:
        raise ArtifactError(f"{where}: expected at least two variants, found {len(variants)}")
    first, seen = variants[0], dict[tuple[tuple[int, ...], ...], int]()
    for index, variant in enumerate(variants):
        title = f"{where}: variants[{index}]"
        for kind in ("inputs", "outputs"):
            named, wanted = (
                [(spec.name, spec.dtype) for spec in getattr(each, kind)]
                for each in (variant, first)
            )
            if named != wanted:
                raise ArtifactError(f"{title}: {kind}: expected those of variants[0], {wanted}, "
                                    f"found {named}")  # fmt: skip
        other = seen.setdefault(tuple(spec.shape for spec in variant.inputs), index)
        if other != index:
            raise ArtifactError(f"{title}: expected other shapes than those of variants[{other}]")
        if variant.entry:
            check_binding(title, variant.entry, variant.weights)
        if weights is not None and any(place >= weights for place in variant.weights):
            raise ArtifactError(
                f"{title}: weights: expected positions below {weights}, found "
                f"{max(variant.weights)}"
            )
        unknown = set(batched) - set(variant.shapes)
        if unknown:
            raise ArtifactError(f"{where}: batched holds {min(unknown)!r}, which is no input")
        rows = [spec for spec in variant.inputs if spec.name in batched]
        rows += variant.outputs if batched else ()
        if len({spec.shape[:1] for spec in rows}) > 1 or any(not spec.shape for spec in rows):
            raise ArtifactError(
                f"{title}: expected one batch in front of the batched inputs and of all outputs, "
                f"found {', '.join(map(str, rows))}"
            )


def find_parts(variants: Sequence[Variant], batched: Sequence[str], shapes: Shapes) -> list[Part]:
    """How inputs of these shapes are run: by the variant that fits, else in as few parts as can be.

    Returns:
        The parts in order, the largest first; none where the inputs fit no variant, nor is their
        batch a sum of those of variants that they fit else.
    """
    for index, variant in enumerate(variants):
        if [spec.shape for spec in variant.inputs] == list(shapes):
            return [Part(index)]
    sizes = dict[int, int]()
    batch = 0
    for index, variant in enumerate(variants):
        found = _batch_of(variant, batched, shapes)
        if found is not None:
            batch, own = found
            sizes.setdefault(own, index)
    if not sizes:
        return []
    parts, start = [], 0
    for size in sum_of(batch, tuple(sorted(sizes))):
        parts.append(Part(sizes[size], start, start + size))
        start += size
    return parts


def _batch_of(variant: Variant, batched: Sequence[str], shapes: Shapes) -> tuple[int, int] | None:
    """The batch of inputs, and that of a variant which they fit but for it."""
    batches = set[tuple[int, int]]()
    for spec, shape in zip(variant.inputs, shapes, strict=True):
        if spec.name not in batched:
            if spec.shape != shape:
                return None
        elif len(shape) != len(spec.shape) or shape[1:] != spec.shape[1:]:
            return None
        else:
            batches.add((shape[0], spec.shape[0]))
    return batches.pop() if len(batches) == 1 else None


@lru_cache(maxsize=256)
def sum_of(total: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The fewest of the ascending `sizes` that add up to `total`, the largest first; () if none do.

    Where as many smaller sizes are used as the largest counts, some of them add up to a multiple of
    it, for which the largest does with no more parts; so only below its square is there a choice.
    """
    largest = sizes[-1]
    whole = max(0, (total - largest * largest) // largest)
    rest = total - whole * largest
    # The last size of the fewest that make each sum, 0 where none do.
    fewest, last = [0] + [rest + 1] * rest, [0] * (rest + 1)
    for amount in range(1, rest + 1):
        for size in sizes:
            if size <= amount and fewest[amount - size] < fewest[amount]:
                fewest[amount], last[amount] = fewest[amount - size] + 1, size
    if rest and not last[rest]:
        return ()
    found = [largest] * whole
    while rest:
        found.append(last[rest])
        rest -= last[rest]
    return tuple(sorted(found, reverse=True))
