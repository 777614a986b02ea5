"""Refuse parameters of torch models that hold no plain array of numbers."""

from collections.abc import Iterator

import torch
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from nmcompile.errors import WeightError


def check_parameters(model: torch.nn.Module | ExportedProgram, title: str) -> None:
    """Check what a model's parameters and buffers are, before anything computes with them.

    Args:
        model: the model.
        title: what messages call it.

    Raises:
        WeightError: a parameter or buffer is not initialised, has no contents, is stored sparse or
            quantised, or is a layer's weight with a dimension of size zero; names it.
    """
    for name, tensor in _tensors(model):
        problem = _problem(tensor)
        if problem is not None:
            raise WeightError(f"{title}: parameter {name} {problem}")


def _tensors(model: torch.nn.Module | ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(model, ExportedProgram):
        found = list(model.state_dict.items())
    else:
        found = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in found:
        # Others may be empty: a padding of no elements, or tokens of which a model has none.
        if is_lazy(tensor) or tensor.numel() or name.rpartition(".")[2] == "weight":
            yield name, tensor


def _problem(tensor: torch.Tensor) -> str | None:
    if is_lazy(tensor):
        return (
            "is not initialised, as of a lazy module; expected a trained model: run it once on an "
            "example and load its weights"
        )
    if tensor.is_meta:
        return (
            'is on the device "meta", where tensors have no contents; expected weights: load the '
            "model on the CPU"
        )
    if tensor.layout != torch.strided:
        return (
            f"is stored as {tensor.layout}; expected a dense tensor, with zeros where it is "
            "pruned: replace it by its .to_dense()"
        )
    if tensor.is_quantized:
        return "is quantised; expected real numbers: replace it by its .dequantize()"
    if tensor.is_complex():
        return f"is {tensor.dtype}; expected real numbers: leave that part out of the model"
    if tensor.numel() == 0:
        return (
            f"has the shape {tuple(tensor.shape)}; expected dimensions of at least 1: remove its "
            "layer from the model"
        )
    return None
