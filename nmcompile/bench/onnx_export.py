"""Torch models as ONNX files, for engines that load those."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

from nmcompile.errors import ModelError


def export_onnx(
    model: Any, examples: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """The file's contents.

    Args:
        model: a torch module; called with `examples` by position.
        examples: tensors of the shapes to fix.
        inputs: what to call them.
        outputs: what to call what is returned.

    Raises:
        ModelError: torch cannot export it.
    """
    import torch

    stream = io.BytesIO()
    try:
        # The exporter prints, and warns of its successor, which takes ten times as long.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                tuple(examples),
                stream,  # type: ignore[arg-type]
                input_names=list(inputs),
                output_names=list(outputs),
                dynamo=False,
                opset_version=17,
            )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the torch model cannot be exported to ONNX for other engines: {lines[0]}; measure "
            "torch only, or export it by hand and name the file"
        ) from error
    return stream.getvalue()
