"""From the options of `nmc bench` to what is measured."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from nmcompile.cli.options import Shape, find_model, is_factory, parse_list, shapes_of
from nmcompile.errors import InputError, NmcompileError, ShapeError
from nmcompile.model_files import is_artifact

if TYPE_CHECKING:
    from nmcompile.bench.engines import EngineRow
    from nmcompile.bench.matrix import PatternSpec
    from nmcompile.bench.sources import Source

T = TypeVar("T")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_size(text: str) -> int:
    """Read `8G` or `500M` as bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"expected a size as 8G or 500M, found {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_duration(text: str) -> float:
    """Read `90`, `90s`, `10m` or `2h` as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"expected a time as 90s, 10m or 2h, found {text!r}")
    return float(found[1]) * _TIMES[found[2]]


def parse_counts(text: str, option: str, most: int | None = None, why: str = "") -> list[int]:
    """Read `1,2,8`: different whole numbers from 1.

    Args:
        text: the list.
        option: its name, for messages.
        most: the highest that is allowed.
        why: what sets that limit.
    """
    counts: list[int] = []
    for word in parse_list(text):
        value = int(word) if word.isdecimal() else 0
        if value < 1 or (most is not None and value > most):
            upper = "" if most is None else f" to {most}, {why}"
            raise typer.BadParameter(
                f"expected numbers from 1{upper}, found {word!r}", param_hint=option
            )
        if value not in counts:
            counts.append(value)
    if not counts:
        raise typer.BadParameter("expected at least one number, found none", param_hint=option)
    return counts


def read_patterns(text: str) -> list["PatternSpec"]:
    """Read `as-is,dense,2:4,1x16@0.5`."""
    from nmcompile.bench.matrix import parse_spec

    return _each(text, parse_spec, "--patterns")


def read_targets(text: str) -> list[str]:
    """Read `avx512,avx512_bf16:bf16,cuda`."""
    from nmcompile.bench.forms import read_form

    return _each(text, read_form, "--targets")


def read_engines(text: str) -> list["EngineRow"]:
    """Ours and those to measure it against; "all" are those that are installed."""
    from nmcompile.bench.engines import ENGINES, OURS, find_engine, is_installed

    if text.strip() == "all":
        return [row for row in ENGINES if row.name == OURS or is_installed(row)]
    named = _each(text, find_engine, "--against") if parse_list(text) else []
    return [find_engine(OURS), *(row for row in named if row.name != OURS)]


def read_sources(
    models: Sequence[str],
    shapes: Sequence[Shape] | None,
    weights: Path | None,
    peers_model: Path | None,
    others: bool,
) -> list["Source"]:
    """The models that were named.

    Args:
        models: files and factories.
        shapes: `--shape`.
        weights: `--weights`.
        peers_model: `--model`.
        others: whether engines besides ours are measured.

    Raises:
        ModelError, ShapeError: a factory cannot be imported, or its inputs are not known.
    """
    from nmcompile.bench.sources import (
        ArtifactSource,
        OnnxSource,
        Source,
        TorchSource,
        unique_names,
    )
    from nmcompile.model_files import check_model_file

    artifacts = [text for text in models if not is_factory(text) and is_artifact(Path(text))]
    factories = [text for text in models if is_factory(text)]
    if weights is not None and len(factories) != 1:
        raise typer.BadParameter(
            f"expected one package.module:factory to load it into, found {len(factories)}",
            param_hint="--weights",
        )
    if peers_model is not None and len(artifacts) != 1:
        raise typer.BadParameter(
            "it is what other engines run in the place of one OUT.nmc, found "
            f"{len(artifacts)} artifacts among the models",
            param_hint="--model",
        )
    if artifacts and others and peers_model is None:
        raise typer.BadParameter(
            f"{artifacts[0]} is an artifact, which other engines cannot run: add the ONNX model "
            "that they run, --model MODEL.onnx",
            param_hint="--against",
        )
    for text in models:
        if text not in artifacts and text not in factories:
            check_model_file(text)
    sources: list[Source] = []
    for name, text in zip(unique_names(models), models, strict=True):
        if text in artifacts:
            sources.append(ArtifactSource(name, text, Path(text), peers_model))
        elif text in factories:
            if not shapes:
                raise ShapeError(
                    f"the torch model of {text} does not say what its inputs look like: name each "
                    "argument of its forward with a shape, for example --shape x=1,3,224,224"
                )
            make = _maker(text, shapes)
            sources.append(TorchSource(name, text, make, shapes_of(shapes), weights))
        else:
            sources.append(OnnxSource(name, text, Path(text), shapes_of(shapes)))
    return sources


def refuse_for_devices(others: bool, data: Path | None) -> None:
    """Refuse what devices cannot do."""
    for given, option in ((others, "--against"), (data is not None, "--data")):
        if given:
            raise typer.BadParameter(
                "devices run nmcompile only, on random inputs: expected it without --tracker; "
                "measure that on this machine",
                param_hint=option,
            )


def need_extra(command: str, *modules: str) -> None:
    """Make sure that what a command imports is there.

    Raises:
        InputError: the extra "bench" is not installed.
    """
    missing = [name for name in modules if not _is_installed(name)]
    if missing:
        raise InputError(
            f"{command} needs {' and '.join(missing)}, not installed here: pip install "
            "'nmcompile[bench]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is None in sys.modules
        return False


SECONDS_PER_CASE = 1.0
"""What a case takes at the very least: to be made ready, and one round."""


def refuse_short(
    budget: float | None,
    groups: int,
    patterns: Sequence["PatternSpec"],
    targets: Sequence[str],
    engines: Sequence["EngineRow"],
) -> None:
    """Refuse a budget that would be over before the first round.

    Args:
        budget: seconds, or None.
        groups: models x batches x threads.
        patterns: as for `expand`, as the rest.
        targets: what ours is compiled for.
        engines: all of them.
    """
    from nmcompile.bench.matrix import expand

    if budget is None:
        return
    (group,) = expand([""], patterns, targets, [1], [None], engines)
    cases = groups * len(group.settings)
    if budget < cases * SECONDS_PER_CASE:
        raise typer.BadParameter(
            f"{budget:g} s are over before the first round: expected {SECONDS_PER_CASE:g} s at "
            f"least for each of {cases} case{'s' * (cases != 1)}; raise it, or measure fewer",
            param_hint="--budget",
        )


def refuse_for_artifacts(models: Sequence[str], options: Sequence[str]) -> None:
    """Refuse options that only models have that are not compiled yet."""
    for text in models:
        if options and not is_factory(text) and is_artifact(Path(text)):
            raise typer.BadParameter(
                f"{text} is compiled already, with its pattern, target and batch; expected the "
                "model it was made from",
                param_hint=", ".join(options),
            )


def default_output(folder: Path) -> Path:
    """`nmc-bench.json`, or a numbered one beside it: an earlier run is not replaced unasked."""
    path, number = folder / "nmc-bench.json", 1
    while path.exists():
        number += 1
        path = folder / f"nmc-bench-{number}.json"
    return path


def _maker(text: str, shapes: Sequence[Shape] | None) -> Callable[[], object]:
    return lambda: find_model(text, shapes)


def _each(text: str, read: Callable[[str], T], option: str) -> list[T]:
    """Every item of a list once, in order; what cannot be read is wrong usage."""
    found: list[T] = []
    for word in parse_list(text):
        try:
            item = read(word)
        except NmcompileError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
        if item not in found:
            found.append(item)
    if not found:
        raise typer.BadParameter("expected at least one, found none", param_hint=option)
    return found
