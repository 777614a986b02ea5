"""Reading JSON strictly: exact keys and types, bounded numbers, text that can be printed again."""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from nmcompile.errors import ArtifactError

MAX_RANK = 16
MAX_ELEMENTS = 1 << 40
MAX_INTEGER = (1 << 63) - 1
MAX_STRING = 4096
MAX_DEPTH = 18  # of the whole document: `layers` of a manifest is a list of objects

OPEN = -1
"""In a shape: a dimension whose size depends on values."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_T = TypeVar("_T")


def parse(data: bytes, where: str) -> Any:
    """Read JSON text in UTF-8.

    Raises:
        ArtifactError: it is none, a key is there twice, or a number is not finite.
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def check_text(value: Any, where: str) -> None:
    """Refuse what could be neither printed nor written again, wherever it stands.

    Raises:
        ArtifactError: a string with half a character, an integer too large, or too deep nesting.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if type(item) is dict:
                inner += [*item, *item.values()]
            elif type(item) is list:
                inner += item
            elif type(item) is str and _SURROGATE.search(item):
                raise ArtifactError(
                    f"{where}: expected Unicode text, found {ascii(item)[:80]}, which has half of "
                    "a surrogate pair"
                )
            elif type(item) is int and not -MAX_INTEGER - 1 <= item <= MAX_INTEGER:
                raise ArtifactError(
                    f"{where}: expected integers in {-MAX_INTEGER - 1}..{MAX_INTEGER}, found one "
                    f"of {item.bit_length()} bits"
                )
        if not inner:
            return
        level = inner
    raise ArtifactError(f"{where}: expected objects and lists at most {MAX_DEPTH} deep")


def check_unique(where: str, key: str, names: list[str]) -> None:
    """Refuse a name that is there twice.

    Raises:
        ArtifactError: names it.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtifactError(f"{where}: {key} holds the name {name!r} twice")
        seen.add(name)


class StrictObject:
    """A JSON object that is taken apart key by key; `end` refuses what nobody asked for."""

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise ArtifactError(f"{where}: expected an object, found {_kind(value)}")
        self.where = where
        self._left = dict(value)

    def take(self, key: str, kind: type, expected: str) -> Any:
        """The value of a key, of exactly this type."""
        if key not in self._left:
            raise ArtifactError(f"{self.where}: {key!r} is missing")
        value = self._left.pop(key)
        if type(value) is not kind:
            self.fail(key, expected, _kind(value))
        return value

    def fail(self, key: str, expected: str, found: str) -> NoReturn:
        """Raise an ArtifactError about a key."""
        raise ArtifactError(f"{self.where}: {key}: expected {expected}, found {found}")

    def string(self, key: str) -> str:
        """Of at most MAX_STRING characters."""
        value: str = self.take(key, str, "a string")
        if len(value) > MAX_STRING:
            self.fail(key, f"at most {MAX_STRING} characters", f"{len(value)}")
        return value

    def integer(self, key: str) -> int:
        """From 0 to MAX_INTEGER."""
        value: int = self.take(key, int, "an integer")
        if not 0 <= value <= MAX_INTEGER:
            self.fail(key, f"an integer in 0..{MAX_INTEGER}", str(value))
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values: list[Any] = self.take(key, list, "a list of strings")
        for value in values:
            if type(value) is not str or len(value) > MAX_STRING:
                self.fail(key, f"strings of at most {MAX_STRING} characters", _kind(value))
        return tuple(values)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers from 0 to MAX_INTEGER."""
        values: list[Any] = self.take(key, list, "a list of integers")
        for value in values:
            if type(value) is not int or not 0 <= value <= MAX_INTEGER:
                self.fail(key, f"integers in 0..{MAX_INTEGER}", repr(value)[:80])
        return tuple(values)

    def is_null(self, key: str) -> bool:
        """Whether a key is null, which is then taken."""
        if self._left.get(key, key) is not None:
            return False
        del self._left[key]
        return True

    def shape(self, key: str, may_be_open: bool = False) -> tuple[int, ...]:
        """Dimensions of at least 1, or OPEN where that may be."""
        values: list[Any] = self.take(key, list, "a list of integers")
        if len(values) > MAX_RANK:
            self.fail(key, f"at most {MAX_RANK} dimensions", str(len(values)))
        known = []
        for value in values:
            if may_be_open and type(value) is int and value == OPEN:
                continue
            if type(value) is not int or not 1 <= value <= MAX_ELEMENTS:
                also = f", or {OPEN}" if may_be_open else ""
                self.fail(key, f"integers in 1..{MAX_ELEMENTS}{also}", repr(value)[:80])
            known.append(value)
        if math.prod(known) > MAX_ELEMENTS:
            self.fail(key, f"at most {MAX_ELEMENTS} elements", str(math.prod(known)))
        return tuple(values)

    def one_of(self, key: str, names: Iterable[str]) -> str:
        """One of these strings."""
        value = self.string(key)
        if value not in names:
            self.fail(key, "one of " + ", ".join(names), repr(value)[:80])
        return value

    def object(self, key: str) -> "StrictObject":
        """An object within."""
        return StrictObject(self.take(key, dict, "an object"), f"{self.where}: {key}")

    def objects(self, key: str, read: Callable[["StrictObject"], _T]) -> tuple[_T, ...]:
        """What `read` makes of each object of a list; it has to ask for every key."""
        values: list[Any] = self.take(key, list, "a list of objects")
        result = []
        for i, value in enumerate(values):
            item = StrictObject(value, f"{self.where}: {key}[{i}]")
            result.append(read(item))
            item.end()
        return tuple(result)

    def anything(self) -> dict[str, Any]:
        """All that is left, whatever it is."""
        value, self._left = self._left, {}
        return value

    def end(self) -> None:
        """Refuse what is left."""
        if self._left:
            names = ", ".join(repr(name)[:80] for name in sorted(self._left)[:5])
            raise ArtifactError(f"{self.where}: unknown key {names}")


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        dict: "an object",
        float: "a fraction",
        int: "an integer",
        list: "a list",
        str: "a string",
    }
    return names.get(type(value), "null")
