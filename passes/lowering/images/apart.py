"""Whether modules for several batches are the same function of each image alone.

Two things have to hold. Within a module, every output row is computed from the input rows of one
image: values are followed from the inputs, each with the axis along which its images lie, and an
operator that is not in `RULES`, or takes images together, ends that. And modules for different
batches are the same function of an image: the same operators on the same values, with the same
attributes and constants, so that nothing of it depends on how many images there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import relax

from nmcompile.passes.lowering.images.reading import Reader, Together
from nmcompile.passes.lowering.images.rules import RULES


def batched_inputs(
    shapes: Sequence[Mapping[str, tuple[int, ...]]], modules: Sequence[Any]
) -> tuple[tuple[str, ...], str]:
    """The inputs that have a row for each image of a batch which may be run in parts.

    Those are the ones whose first dimension differs between the shapes.

    Args:
        shapes: of the inputs, in order, of a model for several shapes.
        modules: simplified, for each of them.

    Returns:
        Their names, and why a batch that differs may not be run in parts, or "".
    """
    names = list(shapes[0])
    differing = [name for name in names if len({each[name][:1] for each in shapes}) > 1]
    if not differing:
        return (), ""
    batches = [{each[name][:1] for name in differing} for each in shapes]
    if any(len(found) > 1 or () in found for found in batches):
        return (), f"the first dimensions of {', '.join(differing)} are not one batch"
    inputs = [name in differing for name in names]
    alike: dict[Any, list[tuple[Any, int]]] = {}
    for each, module in zip(shapes, modules, strict=True):
        rest = tuple(each[name][1:] if name in differing else each[name] for name in names)
        alike.setdefault(rest, []).append((module, each[differing[0]][0]))
    for group in alike.values():
        why = images_apart([m for m, _ in group], [batch for _, batch in group], inputs)
        if why:
            return (), why
    return tuple(differing), ""


def images_apart(modules: Sequence[Any], batches: Sequence[int], inputs: Sequence[bool]) -> str:
    """Why the images of a batch are not computed by themselves, or "".

    Args:
        modules: simplified, of a model for the same shapes but for the batch.
        batches: the batch of each.
        inputs: which inputs have a row for each image; the others are of all.
    """
    texts = list[list[str]]()
    for module, batch in zip(modules, batches, strict=True):
        function = module["main"]
        if not isinstance(function.body, relax.SeqExpr):
            return "it has control flow"
        reader = Reader(function, batch, inputs, RULES)
        try:
            reader.check()
        except Together as error:
            return str(error)
        texts.append(reader.text)
    for batch, text in zip(batches, texts, strict=True):
        if text != texts[0]:
            differing = next(
                (a.split()[0] for a, b in zip(text, texts[0], strict=False) if a != b), "operators"
            )
            return (
                f"it is another function for a batch of {batch} than of {batches[0]}: {differing}"
            )
    return ""
