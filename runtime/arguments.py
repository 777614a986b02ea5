"""The caller's values as the inputs of a model: in order, for the variants that take them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmcompile.errors import InputError
from nmcompile.runtime.manifest import Manifest
from nmcompile.runtime.variants import Part, Shapes, find_parts


class Arguments:
    """What a model takes."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path, self._manifest = path, manifest
        self._names = [spec.name for spec in manifest.inputs]

    def in_order(self, inputs: Any) -> list[Any]:
        """The values of what `Session.run` was called with, one for each input.

        Raises:
            InputError: it is no mapping of the inputs' names, nor the only input.
        """
        if not isinstance(inputs, Mapping):
            if len(self._names) != 1:
                raise InputError(
                    f"expected a mapping with the inputs {self._spelled}, found "
                    f"{type(inputs).__name__}"
                )
            return [inputs]
        missing = [name for name in self._names if name not in inputs]
        extra = [name for name in inputs if name not in self._names]
        if missing or extra:
            found = ", ".join(map(repr, inputs)) or "none"
            raise InputError(f"expected the inputs {self._spelled}, found {found}")
        return [inputs[name] for name in self._names]

    def parts(self, values: Sequence[Any]) -> list[Part]:
        """Which variants run the values, and which images of them.

        Raises:
            InputError: there are several shapes, and these values fit none.
        """
        if not self._manifest.variants:
            return [Part(0)]
        shapes = [shape_of(value) for value in values]
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return [Part(0)]  # whoever converts them says that they are no arrays
        parts = find_parts(self._manifest.variants, self._manifest.batched, known)
        if not parts:
            raise InputError(self._unfit(known))
        return parts

    def whole(self, values: Sequence[Any]) -> Part:
        """The variant that runs the values at once.

        Raises:
            InputError: there is none.
        """
        parts = self.parts(values)
        if len(parts) > 1:
            raise InputError(
                f"{self._path} runs these inputs in {len(parts)} parts, and is profiled with such "
                f"as it runs at once: expected {self._known}"
            )
        return parts[0]

    def of(self, part: Part, values: Sequence[Any]) -> list[Any]:
        """The values of a part."""
        return [
            part.of(value) if name in self._manifest.batched else value
            for name, value in zip(self._names, values, strict=True)
        ]

    @property
    def _spelled(self) -> str:
        return ", ".join(map(repr, self._names))

    @property
    def _known(self) -> str:
        return " or ".join(_spell(form.shapes.items()) for form in self._manifest.variants)

    def _unfit(self, shapes: Shapes) -> str:
        rest = ", or a batch that is a sum of theirs" if self._manifest.batched else ""
        return (
            f"expected inputs of a shape that {self._path} was compiled for, {self._known}{rest}, "
            f"found {_spell(zip(self._names, shapes, strict=True))}; compile the model for this "
            "shape, too"
        )


def _spell(named: Any) -> str:
    """For example ``x 1x3x224x224, mask 1x10``."""
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in named)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of an array or of what shares memory by DLPack; None for anything else."""
    if not hasattr(value, "__dlpack__"):
        return None
    try:
        return tuple(int(extent) for extent in value.shape)
    except (AttributeError, TypeError, ValueError):
        return None
