"""Artifacts whose manifest was changed and signed again: refused, or the answer is the same."""

import copy
import hashlib
import io
import json
import random
import struct
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.errors import NmcompileError
from nmcompile.runtime import load
from nmcompile.runtime.specs import DTYPES, numpy_dtype

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 63, 64, 1 << 31, (1 << 63) - 1, 1 << 63, 10**40,
    0.5, -0.0, 1e300, float("nan"), float("inf"),
    "", "main", "prepare", "vm_load_executable", "add", "x", "y", "\x1b[31m\x07\n", "\ud800",
    "x" * 5000, "../../etc/passwd", "\0", "float16", "int32", "bfloat16", "avx512", "sm_80",
    [], {}, [[]], [1] * 17, [0], [-1], [1 << 40, 1 << 40], {"name": "x"}, [{}],
    json.loads("[" * 50 + "]" * 50),
]  # fmt: skip


def mutate(data: bytes, seed: int) -> bytes:
    """An artifact with one to three changes in its manifest."""
    rng = random.Random(seed)
    length = struct.unpack_from("<Q", data, 32)[0]
    top = json.loads(data[128 : 128 + length])
    body = data[(128 + length + 63) // 64 * 64 :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(
            (_replace, _replace, _replace, _nudge, _reshape, _retype, _reorder, _drop, _add)
        )(top, rng)
    if rng.random() < 0.05:
        text = _damage(json.dumps(top).encode(), rng)
    else:
        text = json.dumps(top, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    end = (128 + len(text) + 63) // 64 * 64
    head = data[:16] + struct.pack("<QQQ", end + len(body), 128, len(text))
    head += hashlib.sha256(text).digest()
    return head.ljust(128, b"\0") + text.ljust(end - 128, b"\0") + body


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def _pick(top: Any, rng: random.Random, kind: type | tuple[type, ...] = object) -> Any:
    places = [place for place in _places(top) if isinstance(place[0][place[1]], kind)]
    return rng.choice(places) if places else (top, "entry")


def _replace(top: Any, rng: random.Random) -> None:
    place, key = _pick(top, rng)
    other = _pick(top, rng)
    place[key] = copy.deepcopy(rng.choice([rng.choice(NASTY), other[0][other[1]]]))


def _nudge(top: Any, rng: random.Random) -> None:
    place, key = _pick(top, rng, int)
    if isinstance(place[key], int):
        place[key] += rng.choice((-64, -1, 1, 2, 64))


def _tensor(top: Any, rng: random.Random) -> Any:
    variants = top.get("variants")
    forms = [form for form in variants if isinstance(form, dict)] if type(variants) is list else []
    tensors = [
        tensor
        for form in (top, *forms)
        for table in ("inputs", "outputs", "params", "values")
        if isinstance(form.get(table), list)
        for tensor in form[table]
        if isinstance(tensor, dict) and isinstance(tensor.get("shape"), list)
    ]
    return rng.choice(tensors) if tensors else None


def _reshape(top: Any, rng: random.Random) -> None:
    """Another shape of as many elements, which only the library can tell."""
    tensor = _tensor(top, rng)
    if tensor is not None:
        shape = [number if type(number) is int else 1 for number in tensor["shape"]]
        tensor["shape"] = shape
        rng.choice(
            (
                lambda: rng.shuffle(shape),
                lambda: shape.insert(rng.randrange(len(shape) + 1), 1),
                lambda: tensor.update(shape=[int(np.prod(shape, dtype=object))]),
            )
        )()


def _retype(top: Any, rng: random.Random) -> None:
    """Another dtype of the same size."""
    tensor = _tensor(top, rng)
    if tensor is not None and str(tensor.get("dtype")) in DTYPES:
        size = DTYPES[tensor["dtype"]]
        tensor["dtype"] = rng.choice([name for name, other in DTYPES.items() if other == size])


def _reorder(top: Any, rng: random.Random) -> None:
    place, key = _pick(top, rng, list)
    if isinstance(place[key], list):
        rng.shuffle(place[key])


def _drop(top: Any, rng: random.Random) -> None:
    place, key = _pick(top, rng)
    if key in place or isinstance(place, list):
        del place[key]


def _add(top: Any, rng: random.Random) -> None:
    place, key = _pick(top, rng, (list, dict))
    inner = place[key]
    if isinstance(inner, list):
        inner.append(copy.deepcopy(rng.choice(inner) if inner else rng.choice(NASTY)))
    elif isinstance(inner, dict):
        inner[rng.choice(("extra", "name", "\x1b[2J", ""))] = rng.choice(NASTY)


def _damage(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


CHANGES = (_replace, _nudge, _reshape, _retype, _reorder, _drop, _add)


def inputs_of(form: Any) -> list[Any]:
    """Arrays for the inputs of a variant, of the same numbers whatever their names."""
    return [
        np.random.default_rng(index).standard_normal(spec.shape).astype(numpy_dtype(spec.dtype))
        for index, spec in enumerate(form.inputs)
    ]


def questions(path: Path) -> list[list[Any]]:
    """Arrays for every shape that an artifact says it takes, and for a batch in parts."""
    with load(path, threads=1) as session:
        manifest = session.manifest
        asked = [inputs_of(form) for form in manifest.forms]
        if manifest.batched:
            batched = [spec.name in manifest.batched for spec in manifest.inputs]
            pairs = zip(asked[0], asked[-1], batched, strict=True)
            asked.append([np.concatenate([a, b]) if both else a for a, b, both in pairs])
        return asked


def answers(path: Path, asked: list[list[Any]]) -> list[Any]:
    """What an artifact computes."""
    with load(path, threads=1) as session:
        names = [spec.name for spec in session.inputs]
        runs = [session.run(dict(zip(names, values, strict=True))) for values in asked]
        return [array for found in runs for array in found.values()]


def check(base: Path, scratch: Path, seed: int) -> str:
    """Load and run a changed copy of an artifact: "refused", "same" or what is wrong."""
    path = scratch / "m.nmc"
    path.write_bytes(mutate(base.read_bytes(), seed))
    if seed % 8 == 0 and (wrong := _shown(path)):
        return wrong
    try:
        asked = questions(path)
        found = answers(path, asked)
    except NmcompileError:
        return "refused"
    expected = answers(base, asked)
    same = len(found) == len(expected) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(found, expected, strict=True)
    )
    return "same" if same else "another answer"


def _shown(path: Path) -> str:
    """What is wrong with how `nmc inspect` shows it."""
    from typer.testing import CliRunner

    from nmcompile.cli import app

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        done = CliRunner().invoke(app, ["inspect", str(path)])
    if done.exit_code not in (0, 1) or "unexpected" in done.stderr:
        return f"inspect ends with {done.exit_code}: {done.stderr[-200:]} {done.exception!r}"
    if any(not c.isprintable() and c != "\n" for c in done.output):
        return f"inspect prints control characters: {ascii(done.output)[:200]}"
    return ""
