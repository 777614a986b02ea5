"""What the authors' code saves, loaded by ours: the same predictions, a proven pattern."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.authors.cases import CASES, Case
from benchmarks.authors.ours import method_of
from benchmarks.authors.setting import LAYERS, Net, Participant, batch
from nmcompile.train import Method, load_checkpoint

EXAMPLES = Path(__file__).parent.parent.parent / "tests" / "traces" / "checkpoints"

# Of one kind each. ASP masks of zyxxmu/SpRE are no part of what it saves.
CHECKPOINTS = tuple(
    case
    for case in CASES
    if case.name
    in ("srste-2-4", "lbc-1-8", "spre-srste-2-4", "asp-2-4", "one-by-n", "subp-l1-cubic")
)

REARRANGED = Case("one-by-n-rearranged", "one by n", "lmbxmu/1xN", 4, density=0.5, rearrange=True)
"""Its filters are sorted by size for the masks and stay where they are: blocks lie scattered."""


def images() -> Tensor:
    """What predictions are compared on."""
    return batch(12345)[0].float()


def saved(who: Participant) -> dict[str, Tensor]:
    """What a trained model of theirs saves, in float32."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in who.model.state_dict().items()
    }


def rounded(state: Mapping[str, Tensor], case: Case) -> dict[str, Tensor]:
    """A small state: float16, but for weights of which the largest are chosen when it is loaded.

    Rounding makes equals of them, and which of these an unstable sort keeps is open.
    """
    chosen = case.method in ("srste", "spre")
    large = {f"{name}.weight" for name in LAYERS if chosen}
    return {
        name: tensor.half() if tensor.is_floating_point() and name not in large else tensor
        for name, tensor in state.items()
    }


def predictions(who: Participant, state: Mapping[str, Tensor]) -> Tensor:
    """Their model's logits with a state; leaves it in float32."""
    who.model.float().load_state_dict(state)
    with torch.no_grad():
        logits: Tensor = who.model.eval()(images())
    return logits


def _plain(case: Case) -> Net:
    return Net(bias=case.method == "one by n")  # whose layers have one


def loaded(case: Case, state: Mapping[str, Any]) -> tuple[nn.Module, Method]:
    """Our model with their state, by our method."""
    model, method = _plain(case), method_of(case)
    load_checkpoint(model, {"state_dict": dict(state), "epoch": 8}, method)
    return model.eval(), method


@dataclass(frozen=True)
class Loaded:
    """What came of a checkpoint.

    error: the largest difference of a logit from theirs; finalized: after `finalize`.
    patterns: what `nmcompile.inspect` says that the layers hold.
    compiled: bytes of the artifact for AVX-512.
    """

    error: float
    finalized: float
    patterns: tuple[str, ...]
    compiled: int


def follow(case: Case, who: Participant) -> Loaded:
    """Save their model to a file, load it with ours, and go all the way to an artifact."""
    state = saved(who)
    expected = predictions(who, state)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model_best.pth"
        torch.save({"epoch": 8, "state_dict": state}, path)
        model, method = _plain(case), method_of(case)
        load_checkpoint(model, path, method)
        error = float((model.eval()(images()) - expected).abs().max())
        method.finalize(model)
        finalized = float((model(images()) - expected).abs().max())
        inputs = (images(),)
        report = nmcompile.inspect(model, example_inputs=inputs)
        rows = [row for row in report.layers if any(name in row.name for name in LAYERS)]
        patterns = tuple(row.pattern + " scattered" * row.scattered for row in rows)
        artifact = nmcompile.compile(
            model, output=Path(folder) / "model.nmc", example_inputs=inputs, target="avx512"
        )
        return Loaded(error, finalized, patterns, Path(artifact.path).stat().st_size)
