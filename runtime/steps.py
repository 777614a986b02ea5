"""The steps of a model of which onnxruntime runs parts: who runs what, and what goes between them.

Everything is checked here before any of it is used: a step reads inputs of the model and what
earlier steps have made, and each name is made once.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nmcompile.errors import ArtifactError
from nmcompile.runtime.strict_json import StrictObject, check_unique

LIBRARY, ONNX = "library", "onnx"
KINDS = (LIBRARY, ONNX)
BOUND = re.compile(r".*_w([0-9a-f]{8})", re.DOTALL)
"""Names of entry functions that say which weights they take, see `binding`."""
WEIGHTS = "weights"
"""The last section of every artifact."""


@dataclass(frozen=True)
class Step:
    """One part of a model.

    kind: "library", compiled by us, or "onnx", run by onnxruntime.
    section: of the artifact, that holds it.
    inputs, outputs: names of what it reads and makes, in its own order.
    entry, prepare: of a library, as in a manifest without steps; else "".
    params: of a library, how many weights it takes; else 0.
    about: a free-form JSON object, for reports.
    weights: in a model for several shapes, which of these `params`, or of what `prepare` makes of
        them, the entry function takes behind the inputs, in this order; None for all.
    """

    kind: str
    section: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    entry: str = ""
    prepare: str = ""
    params: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    weights: tuple[int, ...] | None = None


class Spec(Protocol):
    """What the checks ask of a tensor's description."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str:
        """Its dtype."""

    @property
    def is_open(self) -> bool:
        """Whether its shape depends on values."""

    @property
    def is_wide(self) -> bool:
        """Whether it is of a dtype that only onnxruntime computes with."""


class Stepwise(Protocol):
    """What the checks ask of a model for one shape."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """In execution order."""

    @property
    def inputs(self) -> tuple[Spec, ...]:
        """Of the model."""

    @property
    def outputs(self) -> tuple[Spec, ...]:
        """Of the model."""

    @property
    def values(self) -> tuple[Spec, ...]:
        """Between libraries and onnxruntime."""


def read_step(item: StrictObject, several: bool) -> Step:
    """A step of a manifest, which may be one of a model for several shapes.

    Raises:
        ArtifactError: a key is missing or of another type.
    """
    return Step(
        kind=item.one_of("kind", KINDS),
        section=item.string("section"),
        inputs=item.strings("inputs"),
        outputs=item.strings("outputs"),
        entry=item.string("entry"),
        prepare=item.string("prepare"),
        params=item.integer("params"),
        about=item.take("about", dict, "an object"),
        weights=item.integers("weights") if several else None,
    )


def check_steps(where: str, form: Stepwise) -> None:
    """Hold the steps of a model for one shape against each other and against the rest of it.

    Raises:
        ArtifactError: names the first step that is wrong, what was expected and what was found.
    """
    steps = form.steps
    if not any(step.kind == ONNX for step in steps):
        raise ArtifactError(
            f"{where}: expected steps, at least one of them of kind {ONNX!r}, found {len(steps)}"
        )
    check_unique(where, "the sections of steps", [step.section for step in steps] + [WEIGHTS])
    check_unique(where, "values", [spec.name for spec in form.values])
    inputs = {spec.name for spec in form.inputs}
    outputs = {spec.name for spec in form.outputs}
    between = {spec.name for spec in form.values}
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        for name in sorted(between & names):
            raise ArtifactError(f"{where}: values holds {name!r}, which is one of the {kind}")
    made, ours = _follow(where, steps, inputs)
    for name in sorted(inputs & outputs):
        specs = [spec for spec in (*form.inputs, *form.outputs) if spec.name == name]
        if specs[0] != specs[1]:
            raise ArtifactError(
                f"{where}: expected the output {name!r} to be as the input, {specs[0]}, found "
                f"{specs[1]}"
            )
    for name in sorted(outputs - made - inputs):
        raise ArtifactError(f"{where}: expected a step that makes the output {name!r}, found none")
    _check_values(where, form, ours, between - ours, inputs | outputs)


def check_sections(where: str, plans: Sequence[Sequence[Step]], params: int) -> None:
    """Hold steps of several shapes that share a section against each other, and all to the params.

    Args:
        where: what to call the manifest in messages.
        plans: the steps for each shape.
        params: how many there are.

    Raises:
        ArtifactError: as `check_steps`.
    """
    known = dict[str, Step]()
    for number, steps in enumerate(plans):
        for index, step in enumerate(steps):
            title = f"{where}: variants[{number}]: steps[{index}]"
            first = known.setdefault(step.section, step)
            fixed = ("inputs", "outputs") if step.kind == ONNX else ("prepare", "params")
            for key in ("kind", *fixed):
                wanted, found = getattr(first, key), getattr(step, key)
                if wanted != found:
                    raise ArtifactError(
                        f"{title}: {key}: expected {wanted!r} as in the variant before that has "
                        f"the section {step.section!r}, too, found {found!r}"
                    )
            if step.weights and step.kind == ONNX:
                raise ArtifactError(
                    f"{title}: weights: expected none for onnxruntime, found {len(step.weights)}"
                )
            if step.weights is not None and step.kind == LIBRARY:
                check_binding(title, step.entry, step.weights)
            if step.weights and not step.prepare and max(step.weights) >= step.params:
                raise ArtifactError(
                    f"{title}: weights: expected positions below {step.params}, found "
                    f"{max(step.weights)}"
                )
    taken = sum(step.params for step in known.values())
    if taken != params:
        raise ArtifactError(
            f"{where}: expected params to be the {taken} that the steps take, found {params}"
        )


def _follow(where: str, steps: tuple[Step, ...], inputs: set[str]) -> tuple[set[str], set[str]]:
    """All names that steps make, and those that libraries read or make."""
    known, made, ours = set(inputs), set[str](), set[str]()
    for index, step in enumerate(steps):
        title = f"{where}: steps[{index}]"
        check_unique(title, "inputs", list(step.inputs))
        for name in step.inputs:
            if name not in known:
                raise ArtifactError(
                    f"{title}: expected inputs that are the model's or made by earlier steps, "
                    f"found {name!r}"
                )
        if not step.outputs:
            raise ArtifactError(f"{title}: expected at least one output, found none")
        for name in step.outputs:
            if name in known:
                raise ArtifactError(f"{title}: expected new names for outputs, found {name!r}")
            known.add(name)
            made.add(name)
        if step.kind == LIBRARY:
            ours.update(step.inputs, step.outputs)
            if not step.entry:
                raise ArtifactError(
                    f"{title}: expected the entry function of a library, found none"
                )
        elif step.entry or step.prepare or step.params:
            raise ArtifactError(
                f"{title}: expected no entry, prepare or params for onnxruntime, found "
                f"{step.entry!r}, {step.prepare!r} and {step.params}"
            )
    return made, ours


def _check_values(
    where: str, form: Stepwise, ours: set[str], useless: set[str], elsewhere: set[str]
) -> None:
    """What libraries read and make is described, in one place, with a fixed shape."""
    specs: Mapping[str, Spec] = {
        spec.name: spec for spec in (*form.inputs, *form.outputs, *form.values)
    }
    for name in sorted(useless):
        raise ArtifactError(f"{where}: values holds {name!r}, which no library reads or makes")
    for name in sorted(ours):
        if name not in specs:
            raise ArtifactError(
                f"{where}: expected the shape of {name!r}, which a library reads or makes, among "
                "values, found none"
            )
        if specs[name].is_open:
            raise ArtifactError(
                f"{where}: expected a fixed shape for {name!r}, which a library reads or makes, "
                "found an open one"
            )
        if specs[name].is_wide:
            raise ArtifactError(
                f"{where}: expected a tensor of a dtype that libraries take for {name!r}, found "
                f"{specs[name].dtype}"
            )


def binding(weights: Sequence[int]) -> str:
    """What the name of an entry function ends with that takes these weights, in this order.

    Weights of one shape can be told apart by nothing else that a library says.
    """
    return "w" + hashlib.sha256(",".join(map(str, weights)).encode()).hexdigest()[:8]


def check_binding(title: str, entry: str, weights: Sequence[int]) -> None:
    """Hold the weights of an entry function against its name, if that says which they are.

    Raises:
        ArtifactError: they are others.
    """
    bound = BOUND.fullmatch(entry)
    if bound is not None and not entry.endswith(binding(weights)):
        raise ArtifactError(
            f"{title}: weights: expected those that {entry!r} takes in the order in which it takes "
            f"them, found {list(weights)!r:.80}; compile the model again"
        )
