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
) -> tuple[list[SourceModel], T | Divided[T], str]:
    """Compile, or look at, a model for one shape or several, whole or in parts.

    Args:
        sources: the model for each of its shapes, folded.
        target: what for; those on GPUs take whole models only.
        rest: one of `RESTS`.
        attempt: does it with a model that is all ours.

    Returns:
        The model that was taken, for each shape, which is the ONNX form of a torch model where
        that is needed; what was made of it; and why it is another one, or "".

    Raises:
        UnsupportedOperatorError: the model is not all ours and has to be, nothing of it pays, or
            it has other operators for one of its shapes.
        NmcompileError: what `attempt` raises else.
    """
    given = list(sources)
    try:
        return given, attempt(given), ""
    except (UnsupportedOperatorError, WeightError) as error:
        if rest == "none" or target.arch or isinstance(error, ImpossibleModelError):
            raise
        refusal: Exception = error
    if given[0].kind == "onnx":
        return given, divide_by(given, attempt, refusal), ""
    as_onnx = [_as_onnx(source, refusal) for source in given]
    why = _why(refusal)
    try:
        return as_onnx, attempt(as_onnx), why
    except (UnsupportedOperatorError, WeightError) as error:
        if isinstance(error, ImpossibleModelError):
            raise
        return as_onnx, divide_by(as_onnx, attempt, error), why


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
