"""The door to a model in parts: all of it at once where that can be, else what can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from nmcompile.errors import ImpossibleModelError, InputError, UnsupportedOperatorError, WeightError
from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel
from nmcompile.segments.divide import Divided, divide_by
from nmcompile.targets import Target
from nmcompile.wording import way

T = TypeVar("T")
RESTS = ("onnxruntime", "none")
"""Who runs what is not ours."""


def check_rest_option(rest: str) -> None:
    """Hold an argument `rest` against those there are.

    Raises:
        InputError: it is none.
    """
    if rest not in RESTS:
        raise InputError(
            f"rest {rest!r} is unknown; expected {' or '.join(map(repr, RESTS))}: who runs the "
            f"operators that are not ours ({way('--rest', 'the argument rest')})"
        )


def taken(
    sources: Sequence[SourceModel],
    target: Target,
    rest: str,
    attempt: Callable[[Sequence[SourceModel]], T],
) -> tuple[SourceModel, T | Divided[T], str]:
    """Compile a model for one shape, whole or in parts, or for several, whole.

    Args:
        sources: the model for each of its shapes, folded.
        target: as for `in_parts`.
        rest: one of `RESTS`.
        attempt: does it with a model that is all ours.

    Returns:
        As `in_parts`, the model being that of the first shape.

    Raises:
        UnsupportedOperatorError: the model is not all ours and has to be, or nothing of it pays.
        NmcompileError: what `attempt` raises else.
    """
    if len(sources) == 1:
        return in_parts(sources[0], target, rest, lambda source: attempt([source]))
    return _all_whole(sources, rest, attempt)


def in_parts(
    source: SourceModel, target: Target, rest: str, attempt: Callable[[SourceModel], T]
) -> tuple[SourceModel, T | Divided[T], str]:
    """Compile, or look at, a model, whole or in parts.

    Args:
        source: the model, folded.
        target: what for; those on GPUs take whole models only.
        rest: one of `RESTS`.
        attempt: does it with a model that is all ours.

    Returns:
        The model that was taken, which is the ONNX form of a torch model where that is needed; what
        was made of it; and why it is another one, or "".

    Raises:
        UnsupportedOperatorError: the model is not all ours and has to be, or nothing of it pays.
        NmcompileError: what `attempt` raises else.
    """
    try:
        return source, attempt(source), ""
    except (UnsupportedOperatorError, WeightError) as error:
        if rest == "none" or target.arch or isinstance(error, ImpossibleModelError):
            raise
        refusal: Exception = error
    if source.kind == "onnx":
        return source, divide_by(source, attempt, refusal), ""
    as_onnx = _as_onnx(source, refusal)
    why = _why(refusal)
    try:
        return as_onnx, attempt(as_onnx), why
    except (UnsupportedOperatorError, WeightError) as error:
        if isinstance(error, ImpossibleModelError):
            raise
        return as_onnx, divide_by(as_onnx, attempt, error), why


def _all_whole(
    sources: Sequence[SourceModel],
    rest: str,
    attempt: Callable[[Sequence[SourceModel]], T],
) -> tuple[SourceModel, T, str]:
    """Compile a model for several shapes, which onnxruntime has no part in."""
    found, why = list(sources), ""
    try:
        return found[0], attempt(found), why
    except (UnsupportedOperatorError, WeightError) as error:
        if rest == "none" or isinstance(error, ImpossibleModelError):
            raise
        refusal: Exception = error
    if found[0].kind == "torch":
        why = _why(refusal)
        found = [_as_onnx(source, refusal) for source in found]
        try:
            return found[0], attempt(found), why
        except (UnsupportedOperatorError, WeightError) as error:
            refusal = error
    raise UnsupportedOperatorError(
        f"{found[0].title} is to be compiled for {len(found)} shapes, which takes a model that is "
        f"all ours, and would need onnxruntime for a part: {refusal}; or compile one artifact for "
        "each shape"
    ) from refusal


def _why(refusal: Exception) -> str:
    return f"taken through ONNX, as its torch form was refused: {str(refusal).partition('; ')[0]}"


def _as_onnx(source: SourceModel, refusal: Exception) -> SourceModel:
    """A torch model as torch's exporter writes it.

    Raises:
        UnsupportedOperatorError: it cannot.
    """
    import onnx

    from nmcompile.errors import ModelError
    from nmcompile.frontends.onnx_export import onnx_bytes

    try:
        proto = onnx.load_model_from_string(onnx_bytes(source))
        found, _ = open_folded(proto, smaller=False)
    except ModelError as error:
        raise UnsupportedOperatorError(
            f"{refusal}; nor can it be handed to onnxruntime: {error}"
        ) from error
    return replace(found, title=source.title, model_shapes=source.model_shapes)
