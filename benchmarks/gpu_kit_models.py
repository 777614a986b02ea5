"""The whole models of a kit: libraries, how their weights are packed, reference outputs."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import nmcompile
from benchmarks.gpu import network
from benchmarks.gpu.contents import Model, Recipe
from benchmarks.gpu.models import digest, model_input
from benchmarks.gpu.plan import PATTERNS
from nmcompile import runtime
from nmcompile.errors import TargetError
from nmcompile.frontends import open_model
from nmcompile.passes.lowering.half import HalfLowering
from nmcompile.passes.lowering.kernels import KernelCall, lower_kernels
from nmcompile.passes.lowering.simplify import simplify
from nmcompile.passes.pipeline import run_pipeline
from nmcompile.runtime import manifest as manifests

PATTERN = "2:4"
Add = Callable[[str, bytes], None]
Array = npt.NDArray[Any]


def make_model(arch: str, batch: int, sparser: bool, add: Add) -> Model:
    """Compile the ResNet-50 of one batch; its library and references are handed to `add`.

    Args:
        arch: of the GPU.
        batch: images of one run.
        sparser: whether the library also runs other patterns.
        add: takes a name and content.

    Raises:
        TargetError: nvcc is missing, or the model has constants that are no layer's.
    """
    model = network.build(PATTERN)
    example = (torch.from_numpy(model_input(batch)),)
    recipes = _recipes(model, example, arch)
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as folder:
        path = Path(folder, "model.nmc")
        nmcompile.compile(model, output=path, target=arch, example_inputs=example)
        artifact = runtime.read_artifact(path)
        _check(artifact, recipes)
        library = bytes(artifact.library)
    bare = replace(artifact.manifest, params=(), sections=())
    prefix = f"resnet50-{batch}"
    add(f"{prefix}.so", library)
    add(f"{prefix}.manifest.json", manifests.encode(bare, manifests.WITHOUT))
    references = {}
    for pattern in (PATTERN, *(PATTERNS if sparser else ())):
        name = f"{prefix}.{pattern.replace(':', '-')}.float32"
        add(name, reference(pattern, batch).tobytes())
        references[pattern] = name
    return Model(*(batch, PATTERN, f"{prefix}.so", f"{prefix}.manifest.json"), recipes, references)


@functools.cache
def reference(pattern: str, batch: int) -> npt.NDArray[np.float32]:
    """Logits by torch in float32."""
    with torch.inference_mode():
        out: npt.NDArray[np.float32] = network.build(pattern)(
            torch.from_numpy(model_input(batch))
        ).numpy()
    return out


def _recipes(model: nn.Module, example: tuple[torch.Tensor], arch: str) -> tuple[Recipe, ...]:
    """How every array of the artifact comes from a layer's weight or bias."""
    source = open_model(model, example_inputs=example)
    run_pipeline(source.graph)
    lowered = lower_kernels(simplify(source.to_relax()), arch, lowering=HalfLowering)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    known = {digest(layer.weight.detach().numpy()): i for i, layer in enumerate(layers)}
    found = [
        recipe
        for number, call in enumerate(lowered.calls)
        if call.problem.weight is not None
        for recipe in _recipes_of(call, number, known, lowered.params)
    ]
    if [recipe.name for recipe in found] != list(lowered.params):
        names = ", ".join(sorted(set(lowered.params) - {recipe.name for recipe in found}))
        raise TargetError(
            f"the kit's ResNet-50 for {arch} has constants that are no layer's weight or bias "
            f"({names}): teach benchmarks/gpu_kit_models.py to pack them"
        )
    return tuple(found)


def _recipes_of(
    call: KernelCall, number: int, known: Mapping[str, int], params: Mapping[str, Array]
) -> list[Recipe]:
    weight, choice = call.problem.weight, call.choice
    assert weight is not None
    config = choice.config or choice.kernel.configs(call.problem)[0].config
    # What the row packs for: a matrix product is a convolution to it.
    arguments: tuple[Any, ...] = choice.kernel.lower(call.problem, config).args
    return [
        Recipe(
            name=f"{number}.{name}",
            index=known[digest(weight)],
            kind=kind,
            conv=arguments[1],
            config=config,
            method=arguments[4],
            digest=digest(params[f"{number}.{name}"]),
        )
        for name, kind in (("weights", "weight"), ("bias", "bias"))
    ]


def _check(artifact: runtime.Artifact, recipes: tuple[Recipe, ...]) -> None:
    """Make sure that the recipes are those of the artifact, array by array."""
    expected = {recipe.name: recipe.digest for recipe in recipes}
    names = [spec.name for spec in artifact.manifest.params]
    found = {name: digest(array) for name, array in zip(names, artifact.params, strict=True)}
    if found != expected or names != list(expected):
        raise TargetError(
            "the kit's ResNet-50 was lowered twice with different weights; expected the same: "
            "report it"
        )
