"""The manifest of an artifact: what it says about itself, and its strict reading from JSON.

Every object is read with its exact set of keys and exact types, so a manifest either becomes a
`Manifest` whose every field can be trusted to be of its declared type, or one `ArtifactError`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from nmcompile.errors import ArtifactError

# Bytes per element of every dtype that the tensor tables may name.
DTYPES: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}

MAX_RANK = 16
MAX_ELEMENTS = 1 << 40
MAX_INTEGER = (1 << 63) - 1
MAX_STRING = 4096
MAX_DEPTH = 18  # of the whole manifest: `layers` is a list of objects

_SURROGATE = re.compile("[\ud800-\udfff]")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Producer:
    """Versions of the tools that wrote the artifact."""

    nmcompile: str
    tvm: str
    tvm_ffi: str


@dataclass(frozen=True)
class TargetInfo:
    """What the machine must be: `cpu_features` are flag names as /proc/cpuinfo spells them."""

    kind: str
    name: str
    cpu_features: tuple[str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output of the entry function."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ParamSpec:
    """One weight: `offset` in bytes from the start of the weights section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Call:
    """One kernel call of the entry function: the function called and the layer it belongs to."""

    symbol: str
    layer: str


@dataclass(frozen=True)
class ModelInfo:
    """The compiled model: its name and the sha256 of its source (hex), or "" if unknown."""

    name: str
    digest: str


@dataclass(frozen=True)
class Section:
    """Bytes `offset .. offset + length` of the data area, with one sha256 per chunk."""

    name: str
    offset: int
    length: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything an artifact says about itself.

    `params` are in the order in which the entry function takes them after the inputs, or, where
    `prepare` names a function, in the order in which that takes them: called once per load, it
    returns the tensors that the entry function takes in their stead. `calls` are in
    execution order; `layers` are free-form JSON objects. Whoever writes an artifact leaves
    `params` and `sections` empty: `write_artifact` fills them in.
    """

    producer: Producer
    target: TargetInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ModelInfo
    layers: tuple[dict[str, Any], ...] = ()
    calls: tuple[Call, ...] = ()
    workspace_bytes: int = 0
    entry: str = "main"
    prepare: str = ""
    params: tuple[ParamSpec, ...] = ()
    sections: tuple[Section, ...] = ()


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype called `name` in `DTYPES`; imports ml_dtypes only for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def encode(manifest: Manifest, version: int) -> bytes:
    """Return the manifest as UTF-8 JSON; equal manifests give equal bytes.

    Raises:
        ArtifactError: a layer holds something JSON cannot express, or a field breaks a rule that
            the reader enforces.
    """
    fields = asdict(manifest) | {"format_version": version}
    try:
        text = json.dumps(fields, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"manifest of model {manifest.model.name!r} cannot be written as JSON: {error}; "
            "layer tables may hold only strings, finite numbers, booleans, lists and objects"
        ) from error
    encoded = text.encode()
    decode(encoded, f"manifest of model {manifest.model.name!r}", version)
    return encoded


def decode(data: bytes, where: str, version: int) -> Manifest:
    """Read a manifest and check every key, type and bound.

    Args:
        data: the JSON text, UTF-8.
        where: what to call it in messages.
        version: the format version its header announced.

    Raises:
        ArtifactError: names the first field that is wrong, what was expected and what was found.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error
    top = _Object(value, where)
    found = top.integer("format_version")
    if found != version:
        raise ArtifactError(f"{where}: expected format_version {version}, found {found}")
    manifest = Manifest(
        producer=_producer(top.object("producer")),
        target=_target(top.object("target")),
        entry=top.string("entry"),
        prepare=top.string("prepare") if version >= 2 else "",
        inputs=top.objects("inputs", _tensor),
        outputs=top.objects("outputs", _tensor),
        params=top.objects("params", _param),
        layers=top.objects("layers", lambda layer: layer.anything()),
        calls=top.objects("calls", _call),
        model=_model(top.object("model")),
        workspace_bytes=top.integer("workspace_bytes"),
        sections=top.objects("sections", _section),
    )
    top.end()
    _check_text(value, where)
    _check_unique(where, "inputs", [spec.name for spec in manifest.inputs])
    _check_unique(where, "outputs", [spec.name for spec in manifest.outputs])
    _check_unique(where, "params", [spec.name for spec in manifest.params])
    return manifest


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


def _check_text(value: Any, where: str) -> None:
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


def _check_unique(where: str, key: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtifactError(f"{where}: {key} holds the name {name!r} twice")
        seen.add(name)


class _Object:
    """A JSON object that is taken apart key by key; `end` refuses what nobody asked for."""

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise ArtifactError(f"{where}: expected an object, found {_kind(value)}")
        self.where = where
        self._left = dict(value)

    def take(self, key: str, kind: type, expected: str) -> Any:
        if key not in self._left:
            raise ArtifactError(f"{self.where}: {key!r} is missing")
        value = self._left.pop(key)
        if type(value) is not kind:
            self.fail(key, expected, _kind(value))
        return value

    def fail(self, key: str, expected: str, found: str) -> None:
        raise ArtifactError(f"{self.where}: {key}: expected {expected}, found {found}")

    def string(self, key: str) -> str:
        value: str = self.take(key, str, "a string")
        if len(value) > MAX_STRING:
            self.fail(key, f"at most {MAX_STRING} characters", f"{len(value)}")
        return value

    def integer(self, key: str) -> int:
        value: int = self.take(key, int, "an integer")
        if not 0 <= value <= MAX_INTEGER:
            self.fail(key, f"an integer in 0..{MAX_INTEGER}", str(value))
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values: list[Any] = self.take(key, list, "a list of strings")
        for value in values:
            if type(value) is not str or len(value) > MAX_STRING:
                self.fail(key, f"strings of at most {MAX_STRING} characters", _kind(value))
        return tuple(values)

    def shape(self, key: str) -> tuple[int, ...]:
        values: list[Any] = self.take(key, list, "a list of integers")
        if len(values) > MAX_RANK:
            self.fail(key, f"at most {MAX_RANK} dimensions", str(len(values)))
        for value in values:
            if type(value) is not int or not 1 <= value <= MAX_ELEMENTS:
                self.fail(key, f"integers in 1..{MAX_ELEMENTS}", repr(value)[:80])
        if math.prod(values) > MAX_ELEMENTS:
            self.fail(key, f"at most {MAX_ELEMENTS} elements", str(math.prod(values)))
        return tuple(values)

    def dtype(self, key: str) -> str:
        value = self.string(key)
        if value not in DTYPES:
            self.fail(key, "one of " + ", ".join(DTYPES), repr(value)[:80])
        return value

    def object(self, key: str) -> "_Object":
        return _Object(self.take(key, dict, "an object"), f"{self.where}: {key}")

    def objects(self, key: str, read: Callable[["_Object"], _T]) -> tuple[_T, ...]:
        values: list[Any] = self.take(key, list, "a list of objects")
        result = []
        for i, value in enumerate(values):
            item = _Object(value, f"{self.where}: {key}[{i}]")
            result.append(read(item))
            item.end()
        return tuple(result)

    def anything(self) -> dict[str, Any]:
        value, self._left = self._left, {}
        return value

    def end(self) -> None:
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


def _producer(item: _Object) -> Producer:
    result = Producer(item.string("nmcompile"), item.string("tvm"), item.string("tvm_ffi"))
    item.end()
    return result


def _target(item: _Object) -> TargetInfo:
    result = TargetInfo(item.string("kind"), item.string("name"), item.strings("cpu_features"))
    item.end()
    return result


def _model(item: _Object) -> ModelInfo:
    result = ModelInfo(item.string("name"), item.string("digest"))
    item.end()
    return result


def _tensor(item: _Object) -> TensorSpec:
    return TensorSpec(item.string("name"), item.shape("shape"), item.dtype("dtype"))


def _call(item: _Object) -> Call:
    return Call(item.string("symbol"), item.string("layer"))


def _param(item: _Object) -> ParamSpec:
    spec = ParamSpec(
        name=item.string("name"),
        dtype=item.dtype("dtype"),
        shape=item.shape("shape"),
        offset=item.integer("offset"),
        nbytes=item.integer("nbytes"),
    )
    expected = math.prod(spec.shape) * DTYPES[spec.dtype]
    if spec.nbytes != expected:
        item.fail("nbytes", f"{expected} for {spec.dtype} of shape {spec.shape}", str(spec.nbytes))
    return spec


def _section(item: _Object) -> Section:
    return Section(
        name=item.string("name"),
        offset=item.integer("offset"),
        length=item.integer("length"),
        sha256=item.strings("sha256"),
    )
