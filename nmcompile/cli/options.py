"""Arguments and options that several commands share, and how their values are read."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from nmcompile.cli.completion import complete_artifact, complete_onnx, complete_target
from nmcompile.errors import ModelError, ShapeError
from nmcompile.explain import missing_package

if TYPE_CHECKING:
    from nmcompile.devices import Fleet

SHOWN = 4  # functions that a message lists
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Shape(NamedTuple):
    """One `--shape NAME=1,3,224,224`."""

    name: str
    dims: tuple[int, ...]


def parse_shape(text: str) -> Shape:
    """Read `NAME=1,3,224,224`; input names may hold anything, the last `=` separates."""
    name, found, dims = text.rpartition("=")
    try:
        sizes = tuple(int(dim) for dim in dims.split(","))
    except ValueError:
        sizes = ()
    if not (found and name and sizes and min(sizes) > 0):
        raise typer.BadParameter(f"expected NAME=1,3,224,224, found {text!r}")
    return Shape(name, sizes)


def parse_list(text: str) -> list[str]:
    """Read `a,b,c`."""
    return [word.strip() for word in text.split(",") if word.strip()]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX file, or package.module:factory, a function in the working directory's "
        "Python path that returns a torch model (say the input shapes with --shape).",
        autocompletion=complete_onnx,
    ),
]
ArtifactArgument = Annotated[
    Path,
    typer.Argument(metavar="OUT.nmc", help="A compiled model.", autocompletion=complete_artifact),
]
ShapeOption = Annotated[
    list[Shape] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1,3,224,224",
        parser=parse_shape,
        help="The shape of an input that the model leaves open. May be repeated.",
    ),
]
ShapesOption = Annotated[
    list[Shape] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1,3,224,224",
        parser=parse_shape,
        help="The shape of an input that the model leaves open. May be repeated, also for the same "
        "input: the artifact then has several shapes, the k-th of every input together.",
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(help="What to compile for, see `nmc targets`.", autocompletion=complete_target),
]
DensityOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of the weights to keep when 1xN or unstructured is enforced.",
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A layer to leave as it is; wildcards as in layer1.*. May be repeated.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Cores to run on; all by default.", show_default=False)
]
KeyOption = Annotated[
    str, typer.Option(help="Which of the tracker's devices: the key they were served under.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


def shapes_of(shapes: Sequence[Shape] | None) -> dict[str, tuple[int, ...]]:
    """The `--shape` options by input name, where one shape is looked at."""
    sets = shape_sets_of(shapes)
    if len(sets) > 1:
        raise typer.BadParameter(
            f"only `nmc compile` takes several shapes of an input: expected one, found {len(sets)}",
            param_hint="--shape",
        )
    return sets[0]


def shape_sets_of(shapes: Sequence[Shape] | None) -> list[dict[str, tuple[int, ...]]]:
    """The sets of shapes that `--shape` names: the first of each input, the second, and so on.

    An input that is named once has that shape in all of them.
    """
    by_name: dict[str, list[tuple[int, ...]]] = {}
    for shape in shapes or ():
        by_name.setdefault(shape.name, []).append(shape.dims)
    count = max(map(len, by_name.values()), default=1)
    for name, dims in by_name.items():
        if len(dims) not in (1, count):
            most = next(other for other, found in by_name.items() if len(found) == count)
            raise typer.BadParameter(
                f"the shapes of several inputs belong together in their order: expected {count} "
                f"of {name}, as of {most}, or 1 for all of them, found {len(dims)}",
                param_hint="--shape",
            )
    return [
        {name: dims[number if len(dims) > 1 else 0] for name, dims in by_name.items()}
        for number in range(count)
    ]


def read_fleet(tracker: str, key: str, timeout: float) -> "Fleet | None":
    """The devices of `--tracker` and `--key`; None for this machine.

    Raises:
        InputError: the tracker's address is none.
    """
    if not tracker and not key:
        return None
    if not tracker or not key:
        raise typer.BadParameter(
            "devices are found by --tracker HOST:PORT and --key: expected both, found one",
            param_hint="--tracker" if not tracker else "--key",
        )
    from nmcompile.devices import Address, Fleet

    return Fleet(Address.parse(tracker), key, timeout)


def is_factory(text: str) -> bool:
    """Whether a MODEL argument means `package.module:factory`, and no file."""
    return not os.path.exists(text) and _FACTORY.fullmatch(text) is not None


def find_model(text: str, shapes: Sequence[Shape] | None) -> Any:
    """What the driver takes for a MODEL argument: a path, or the torch model of a factory.

    Raises:
        ModelError: the factory cannot be found or imported, or it fails.
        DeviceError: it needs a package of an extra that is not installed, such as torch.
        ShapeError: a torch model needs input shapes, and there are none.
    """
    if not is_factory(text):
        return text
    if not shapes:
        raise ShapeError(
            f"the torch model of {text} does not say what its inputs look like: name each argument "
            "of its forward with a shape, for example --shape x=1,3,224,224"
        )
    factory = _find_factory(text)
    try:
        return factory()
    except Exception as error:
        raise ModelError(
            f"{text} cannot make the model: {type(error).__name__}: {error}; expected a function "
            "without arguments that returns a torch model"
        ) from error


def _find_factory(text: str) -> Any:
    """The function that `package.module:factory` names.

    Raises:
        ModelError: there is no such module, it cannot be imported, or it has no such function.
        DeviceError: it needs a package of an extra that is not installed.
    """
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise missing_package(error) or _broken(module_name, error) from error
        if module_name.endswith(".py"):
            plain = module_name.removesuffix(".py")
            raise ModelError(
                f"there is no Python module {module_name}: modules are named without .py, as "
                f"{plain}:{attribute}"
            ) from error
        raise ModelError(
            f"there is no Python module {error.name}, in {os.getcwd()} or installed: expected "
            f"package.module:factory, found {text}; check the name, or the working directory"
        ) from error
    except Exception as error:
        raise _broken(module_name, error) from error
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    if hasattr(module, attribute):
        raise ModelError(
            f"{text} is of type {type(found).__name__}: expected a function without arguments that "
            "returns a torch model"
        )
    own = [
        name
        for name, thing in vars(module).items()
        if callable(thing) and getattr(thing, "__module__", "") == module.__name__
    ]
    near = difflib.get_close_matches(attribute, own, SHOWN) or own[:SHOWN]
    has = f"it has {', '.join(near)}" if near else "it has no function at all"
    raise ModelError(
        f"module {module_name} has no function {attribute}: {has}; name one as {module_name}:"
        f"{near[0] if near else 'factory'}"
    )


def _broken(module: str, error: Exception) -> ModelError:
    return ModelError(
        f"module {module} cannot be imported: {type(error).__name__}: {error}; expected a module "
        "that `python -c 'import ...'` imports"
    )
