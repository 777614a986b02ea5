"""Whether a path can be a model, before anything is imported that would read it."""

from __future__ import annotations

import ast
import difflib
import os
from pathlib import Path

from nmcompile.errors import ModelError

WEIGHTS = {".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".tar"}
"""Suffixes of files of weights alone; torch uses some of them for whole models, too."""

OTHERS = {".pt2": "an exported torch program", ".tflite": "a TensorFlow Lite model",
          ".pb": "a TensorFlow graph", ".h5": "a Keras model", ".keras": "a Keras model",
          ".engine": "a TensorRT engine", ".xml": "an OpenVINO model"}  # fmt: skip
"""Other kinds of models, by suffix."""

IR_VERSION = b"\x08"
"""What every exporter writes first into an ONNX file: the tag of its IR version."""

BEGIN = 8  # bytes of a file that say what it is
SHOWN = 4  # names that a message lists


def check_model_file(path: str | os.PathLike[str]) -> None:
    """Make sure that a file may be an ONNX model.

    Raises:
        ModelError: it is not there, a folder, or of a kind that is known to be another.
    """
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            begin = opened.read(BEGIN)
    except IsADirectoryError as error:
        models = sorted(entry.name for entry in file.glob("*.onnx"))
        inside = f"; in it: {', '.join(models[:SHOWN])}" if models else ""
        raise ModelError(
            f"model {path} is a folder: expected an ONNX file{inside}; name the file"
        ) from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(
            f"model file {path} cannot be read: {reason}; check the path{_alike(file)}"
        ) from error
    if begin.startswith(IR_VERSION):
        return
    suffix = file.suffix.lower()
    if is_artifact_start(begin) or (suffix == ".nmc" and not begin):
        raise ModelError(
            f"{path} is compiled already: expected the model that it was made from; run it with "
            "`nmc run` (nmcompile.runtime.load), look into it with `nmc inspect`"
        )
    if suffix == ".py":
        raise ModelError(
            f"{path} is Python source and no model: name the function in it that returns a torch "
            f"model, as {file.stem}:{_function(file)}; in Python, pass the model itself"
        )
    if suffix in WEIGHTS:
        raise ModelError(
            f"{path} is a file of torch weights, which has no layers: expected an ONNX file, or "
            "package.module:factory, a function that makes the model and loads them; in Python, "
            "pass the model itself (nmcompile.train.load_checkpoint loads weights into it)"
        )
    if suffix in OTHERS:
        raise ModelError(
            f"{path} is {OTHERS[suffix]}: expected an ONNX file, or package.module:factory, a "
            "function that returns a torch model; export the model to ONNX"
        )


def is_artifact(path: Path) -> bool:
    """Whether a file calls itself an artifact, by its name or by its first bytes."""
    if path.suffix == ".nmc":
        return True
    try:
        with open(path, "rb") as file:
            return is_artifact_start(file.read(BEGIN))
    except OSError:
        return False  # who reads the model says what is wrong with the path


def is_artifact_start(begin: bytes) -> bool:
    """Whether a file that begins so calls itself an artifact."""
    from nmcompile.runtime.format import MAGIC

    return begin.startswith(MAGIC)


def _alike(file: Path) -> str:
    """A model beside it whose name is nearly the same."""
    try:
        names = [entry.name for entry in file.parent.glob("*.onnx")]
    except (OSError, ValueError):
        return ""
    found = difflib.get_close_matches(file.name, names, 1)
    return f"; {file.with_name(found[0])} is there" if found else ""


def _function(file: Path) -> str:
    """The first function or class of a module, to show how it is named."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return "FUNCTION"
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node.name for node in tree.body if isinstance(node, kinds)), "FUNCTION")
