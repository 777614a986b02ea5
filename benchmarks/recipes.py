"""The training methods that the accuracy benchmarks compare, and how one of them trains a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from benchmarks.training import train
from nmcompile.sparsity import NM, parse_pattern
from nmcompile.train import ASP, LBC, SRSTE, SUBP, Magnitude, Method, OneByN, SpRe

Settings = Mapping[str, Any]

BY_AUTHORS = ", the authors' code"  # behind the title of a row of ours
SEARCH_LIMIT = 600.0  # seconds for an order of channels: no run ends early, so that all repeat


class Maker(Protocol):
    """Makes a method for a number of epochs; the settings override its own hyper-parameters.

    `seed` is for what it draws by chance beside torch's global generator.
    """

    def __call__(self, epochs: int, seed: int, **settings: Any) -> Method: ...


@dataclass(frozen=True)
class Recipe:
    """One way to get a sparse model.

    pattern, density: of what comes out; "dense" and 1 for a dense model.
    make: the method; None for dense.
    one_shot: whether half of the training makes a dense model first.
    settings: the hyper-parameters that a search tries beside the method's own.
    """

    title: str
    pattern: str
    density: float
    make: Maker | None
    one_shot: bool = False
    settings: tuple[Settings, ...] = field(default=(), hash=False)

    @property
    def name(self) -> str:
        """What tells it from the others."""
        if self.make is None:
            return self.title
        share = f" {self.density:.1%}" if self.pattern.startswith("1x") else ""
        return f"{self.title} {self.pattern}{share}"


DENSE = Recipe("dense", "dense", 1.0, None)


def nm_recipes(name: str) -> list[Recipe]:
    """All methods for an N:M pattern, and unstructured pruning to its density."""
    pattern = parse_pattern(name)
    assert isinstance(pattern, NM)
    density = pattern.n / pattern.m

    def magnitude(epochs: int, seed: int, **settings: Any) -> Method:
        return Magnitude(density, **settings)

    def asp(epochs: int, seed: int, **settings: Any) -> Method:
        return ASP(name, **settings)

    def srste(epochs: int, seed: int, **settings: Any) -> SRSTE:
        return SRSTE(name, **settings)

    def lbc(epochs: int, seed: int, *, end: float = 0.5, **settings: Any) -> LBC:
        return LBC(name, 0, int(end * epochs), **settings)

    def spre_asp(epochs: int, seed: int, **settings: Any) -> Method:
        return SpRe(name, ASP(name), **settings)

    def spre_srste(epochs: int, seed: int, *, scale: float = 1.0, **settings: Any) -> Method:
        return SpRe(name, srste(epochs, seed, **settings), scale=scale)

    def spre_lbc(epochs: int, seed: int, *, scale: float = 1.0, **settings: Any) -> Method:
        return SpRe(name, lbc(epochs, seed, **settings), scale=scale)

    decays = ({"decay": 2e-5}, {"decay": 2e-3})
    ends = ({"end": 0.25}, {"end": 0.75})
    scales = ({"scale": 0.5}, {"scale": 0.0})
    return [
        Recipe("unstructured, one-shot", name, density, magnitude, one_shot=True),
        Recipe("ASP, one-shot", name, density, asp, one_shot=True),
        Recipe("SR-STE", name, density, srste, settings=decays),
        Recipe("LBC", name, density, lbc, settings=ends),
        Recipe("SpRe over ASP", name, density, spre_asp, one_shot=True, settings=scales),
        Recipe("SpRe over SR-STE", name, density, spre_srste, settings=scales),
        Recipe("SpRe over LBC", name, density, spre_lbc, settings=scales),
    ]


def block_recipes(density: float, name: str = "1x16") -> list[Recipe]:
    """All methods for 1xN blocks of which a share is kept."""

    def one_by_n(epochs: int, seed: int, **settings: Any) -> Method:
        return OneByN(name, density, **settings)

    def rearranged(epochs: int, seed: int, **settings: Any) -> Method:
        limited: dict[str, Any] = {"seed": seed, "time_limit": SEARCH_LIMIT, **settings}
        return OneByN(name, density, rearrange=True, **limited)

    def subp(epochs: int, seed: int, **settings: Any) -> Method:
        return SUBP(name, density, seed=seed, **settings)

    def subp_l2(epochs: int, seed: int, **settings: Any) -> Method:
        return SUBP(name, density, seed=seed, criterion="l2", **settings)

    def subp_bpar(epochs: int, seed: int, **settings: Any) -> Method:
        return SUBP(name, density, seed=seed, criterion="bpar", **settings)

    tried = ({"decay": 2e-3}, {"tau": 0.1})
    return [
        Recipe("1xN, one-shot", name, density, one_by_n, one_shot=True),
        Recipe("1xN rearranged, one-shot", name, density, rearranged, one_shot=True),
        Recipe("SUBP", name, density, subp, settings=tried),
        Recipe("SUBP by L2", name, density, subp_l2, settings=tried),
        Recipe("SUBP by BPAR", name, density, subp_bpar, settings=tried),
    ]


def apply(
    recipe: Recipe,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    settings: Settings | None = None,
    chance: int = 0,
    **training: Any,
) -> nn.Module:
    """Train a model by a recipe, in place, and finish it.

    `chance` is the seed of the method, `training` is for `train`.

    A model for a one-shot recipe is trained already.
    """
    method = None if recipe.make is None else recipe.make(epochs, chance, **(settings or {}))
    if method is not None:
        model = method.prepare(model)
    train(model, images, labels, epochs=epochs, method=method, **training)
    return model if method is None else method.finalize(model)
