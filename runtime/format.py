"""Bytes of an artifact file: how it is laid out, written and checked. FORMAT.md is the contract."""

import hashlib
import itertools
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nmcompile.errors import ArtifactError, DeviceError
from nmcompile.runtime.files import replace_file
from nmcompile.runtime.manifest import WITH_BOTH, Manifest, Section, decode, encode
from nmcompile.runtime.specs import DTYPES, ParamSpec, numpy_dtype
from nmcompile.runtime.steps import LIBRARY, WEIGHTS

# The non-ASCII first byte and the line ends give away transfers that treat the file as text.
MAGIC = b"\x89NMC\r\n\x1a\n"
FORMAT_VERSION = WITH_BOTH  # the newest; versions from 1 on are read
ALIGNMENT = 64  # bytes: a cache line and one AVX-512 register, which DLPack consumers ask for
HEADER_SIZE = 128
CHUNK = 16 << 20  # bytes per digest, so that several threads can share one section
MAX_MANIFEST = 64 << 20

_HEADER = struct.Struct("<8sIIQQQ32s")
_HASH_THREADS = 4  # beyond four, memory bandwidth rather than sha256 sets the pace


class _Header(NamedTuple):
    magic: bytes
    version: int
    header_size: int
    file_size: int
    manifest_offset: int
    manifest_length: int
    manifest_sha256: bytes


@dataclass(frozen=True)
class Artifact:
    """A checked artifact, mapped into memory.

    Attributes:
        path: the file it came from.
        manifest: what the file says about itself.
        digest: sha256 of the manifest (hex). The manifest holds the digests of all other bytes,
            so this pins the whole file.
        parts: what steps run, by section: a shared object, or an ONNX file.
        params: the weights in the order of `manifest.params`: 64-byte-aligned views of a private
            mapping of the file, writeable as far as numpy can tell, never written back.
    """

    path: Path
    manifest: Manifest
    digest: str
    parts: Mapping[str, memoryview]
    params: tuple[np.ndarray[Any, Any], ...]

    @property
    def library(self) -> memoryview:
        """The shared object of a model without steps."""
        return self.parts[LIBRARY]


def write_artifact(
    path: str | os.PathLike[str],
    manifest: Manifest,
    library: bytes | Mapping[str, bytes],
    params: Mapping[str, np.ndarray[Any, Any]],
) -> str:
    """Write an artifact to `path`, replacing what is there only once everything is on disk.

    Args:
        path: the file to write; its directory must exist.
        manifest: with `params` and `sections` empty, they are filled in here.
        library: the shared object; of a manifest with steps, what they run, by section.
        params: the weights by name, in the order in which the entry function takes them; of
            several libraries, one after the other.

    Returns:
        The artifact's digest (64 hex digits), for `load(..., digest=...)`.

    Raises:
        ArtifactError: a weight's dtype or size cannot be stored, the manifest breaks a rule, or
            the file cannot be written; a file that stood at `path` is then untouched.
    """
    if manifest.params or manifest.sections:
        raise ArtifactError(
            f"manifest of model {manifest.model.name!r}: expected params and sections to be "
            "empty, they are filled in when the artifact is written"
        )
    arrays = {name: np.asarray(array, order="C") for name, array in params.items()}
    table, weights_length = _layout(arrays)
    parts = library if isinstance(library, Mapping) else {LIBRARY: library}
    sections, end = [], 0
    for name in manifest.by_section:
        content = parts[name]
        digests = _digests([memoryview(content)])
        sections.append(Section(name, _aligned(end), len(content), digests))
        end = _aligned(end) + len(content)
    weights_offset = _aligned(end)
    weights = Section(WEIGHTS, weights_offset, weights_length, _digests(_blob(arrays)))
    filled = replace(manifest, params=table, sections=(*sections, weights))
    version = manifest.version
    text = encode(filled, version)
    if len(text) > MAX_MANIFEST:
        raise ArtifactError(
            f"manifest of model {manifest.model.name!r}: expected at most {MAX_MANIFEST} bytes, "
            f"found {len(text)}; shorten the layer table"
        )
    digest = hashlib.sha256(text)
    data_start = _aligned(HEADER_SIZE + len(text))
    header = _Header(
        MAGIC,
        version,
        HEADER_SIZE,
        data_start + weights_offset + weights_length,
        HEADER_SIZE,
        len(text),
        digest.digest(),
    )
    pieces = [
        _HEADER.pack(*header),
        bytes(HEADER_SIZE - _HEADER.size),
        text,
        bytes(data_start - HEADER_SIZE - len(text)),
    ]
    for section in sections:
        pieces += [parts[section.name], bytes(-section.length % ALIGNMENT)]
    head = [memoryview(piece) for piece in pieces]
    replace_file(Path(path), itertools.chain(head, _blob(arrays)))
    return digest.hexdigest()


def read_artifact(path: str | os.PathLike[str], copy: bool = False) -> Artifact:
    """Map the artifact at `path` and check every byte of it before anything is used.

    Args:
        path: the file.
        copy: whether to read it into memory instead of mapping it. What was checked is then what
            is used, even where somebody writes into the file. The library is always a copy.

    Raises:
        ArtifactError: the file cannot be read, is no artifact, is damaged, or is too new.
    """
    path = Path(path)
    data = _map(path, copy)
    header = _read_header(path, data)
    start, end = header.manifest_offset, header.manifest_offset + header.manifest_length
    text = data[start:end]
    if hashlib.sha256(text).digest() != header.manifest_sha256:
        raise ArtifactError(f"{path} is damaged: the sha256 of its manifest does not match")
    manifest = decode(text, f"manifest of {path}", header.version)
    data_start = _aligned(end)
    gaps = [(_HEADER.size, HEADER_SIZE), (end, data_start)]
    position = 0
    steps = manifest.by_section
    wanted = [*steps, WEIGHTS]
    if [section.name for section in manifest.sections] != wanted:
        raise ArtifactError(
            f"manifest of {path}: expected the sections {', '.join(wanted)}, found "
            + ", ".join(repr(section.name)[:80] for section in manifest.sections)
        )
    for section in manifest.sections:
        expected = _aligned(position)
        if section.offset != expected:
            raise ArtifactError(
                f"manifest of {path}: section {section.name!r}: expected offset {expected}, "
                f"found {section.offset}"
            )
        gaps.append((data_start + position, data_start + expected))
        position = expected + section.length
    if data_start + position != header.file_size:
        raise ArtifactError(
            f"{path}: expected its sections to end at byte {data_start + position}, the end of "
            f"the file, found {header.file_size}"
        )
    for low, high in gaps:
        if any(data[low:high]):
            raise ArtifactError(f"{path} is damaged: bytes {low} to {high} are not all zero")
    _check_params(path, manifest)
    view = memoryview(data)
    *contents, weights = (
        view[data_start + section.offset :][: section.length] for section in manifest.sections
    )
    parts = {
        # A library is unpacked later: what was checked is what is used.
        name: memoryview(bytes(content)) if step.kind == LIBRARY else content
        for (name, step), content in zip(steps.items(), contents, strict=True)
    }
    _check_digests(path, manifest, (*parts.values(), weights))
    arrays = tuple(
        np.frombuffer(weights[spec.offset :][: spec.nbytes], numpy_dtype(spec.dtype)).reshape(
            spec.shape
        )
        for spec in manifest.params
    )
    return Artifact(path, manifest, header.manifest_sha256.hex(), parts, arrays)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _layout(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[tuple[ParamSpec, ...], int]:
    table = []
    end = 0
    for name, array in arrays.items():
        dtype = array.dtype.name
        if dtype not in DTYPES or not array.dtype.isnative:
            raise ArtifactError(
                f"weight {name!r}: expected one of the dtypes {', '.join(DTYPES)}, "
                f"found {array.dtype}"
            )
        if array.size == 0:
            raise ArtifactError(f"weight {name!r}: expected no empty axis, found {array.shape}")
        offset = _aligned(end)
        table.append(ParamSpec(name, dtype, array.shape, offset, array.nbytes))
        end = offset + array.nbytes
    return tuple(table), end


def _blob(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[memoryview]:
    """Yield the bytes of the weights section in order, without joining them."""
    end = 0
    for array in arrays.values():
        yield memoryview(bytes(_aligned(end) - end))
        yield array.reshape(-1).view(np.uint8).data
        end = _aligned(end) + array.nbytes


def _digests(pieces: Iterable[memoryview]) -> tuple[str, ...]:
    """Return the sha256 of each CHUNK bytes of the joined pieces."""
    result = []
    digest, room = hashlib.sha256(), CHUNK
    for piece in pieces:
        while len(piece):
            part, piece = piece[:room], piece[room:]
            digest.update(part)
            room -= len(part)
            if room == 0:
                result.append(digest.hexdigest())
                digest, room = hashlib.sha256(), CHUNK
    if room < CHUNK:
        result.append(digest.hexdigest())
    return tuple(result)


def _map(path: Path, copy: bool) -> mmap.mmap:
    try:
        # Checked before opening: opening a pipe would wait for a writer.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path}: expected a file, found a directory or a device")
        if status.st_size < HEADER_SIZE:
            raise ArtifactError(
                f"{path} is no artifact: expected at least {HEADER_SIZE} bytes, "
                f"found {status.st_size}"
            )
        with open(path, "rb") as file:
            if copy:
                data = mmap.mmap(-1, status.st_size)
                if file.readinto(data) == status.st_size and not file.read(1):
                    return data
                raise ArtifactError(f"{path} changes while it is read; load it again")
            # A private mapping: numpy and DLPack see writeable memory, the file stays as it is.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except MemoryError as error:
        raise DeviceError(f"cannot read {path}: memory is too small for it") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ArtifactError(f"cannot read {path}: {reason}") from error


def _read_header(path: Path, data: mmap.mmap) -> _Header:
    header = _Header(*_HEADER.unpack(data[: _HEADER.size]))
    if header.magic != MAGIC:
        raise ArtifactError(
            f"{path} is no artifact: expected it to begin with {MAGIC!r}, found {header.magic!r}; "
            "compile the model first (nmc compile)"
        )
    if header.version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {header.version}, this nmcompile reads up to "
            f"{FORMAT_VERSION}: install a newer nmcompile, or compile the model with this one"
        )
    if header.version < 1:
        raise ArtifactError(
            f"{path}: expected a format version from 1 to {FORMAT_VERSION}, found {header.version}"
        )
    if header.file_size != len(data):
        raise ArtifactError(
            f"{path}: expected file size {header.file_size}, actual {len(data)}; the file was cut "
            "short or appended to, copy it again"
        )
    for name, expected, found in (
        ("header size", HEADER_SIZE, header.header_size),
        ("manifest offset", HEADER_SIZE, header.manifest_offset),
    ):
        if expected != found:
            raise ArtifactError(f"{path}: expected {name} {expected}, found {found}")
    limit = min(MAX_MANIFEST, len(data) - HEADER_SIZE)
    if header.manifest_length > limit:
        raise ArtifactError(
            f"{path}: expected a manifest of at most {limit} bytes, found {header.manifest_length}"
        )
    return header


def _check_params(path: Path, manifest: Manifest) -> None:
    end = 0
    for spec in manifest.params:
        if spec.offset != _aligned(end):
            raise ArtifactError(
                f"manifest of {path}: weight {spec.name!r}: expected offset {_aligned(end)}, "
                f"found {spec.offset}"
            )
        end = spec.offset + spec.nbytes
    length = manifest.sections[-1].length
    if end != length:
        raise ArtifactError(
            f"manifest of {path}: expected the weights to end at byte {length} of their section, "
            f"found {end}"
        )


def _check_digests(path: Path, manifest: Manifest, views: Sequence[memoryview]) -> None:
    jobs = []
    for section, view in zip(manifest.sections, views, strict=True):
        count = -(-section.length // CHUNK)
        if len(section.sha256) != count:
            raise ArtifactError(
                f"manifest of {path}: section {section.name!r}: expected {count} digests, one per "
                f"{CHUNK} bytes, found {len(section.sha256)}"
            )
        for i, expected in enumerate(section.sha256):
            jobs.append((section.name, i * CHUNK, view[i * CHUNK :][:CHUNK], expected))

    def matches(job: tuple[str, int, memoryview, str]) -> bool:
        return hashlib.sha256(job[2]).hexdigest() == job[3]

    workers = min(_HASH_THREADS, len(os.sched_getaffinity(0)), len(jobs))
    if workers > 1 and len(views[-1]) > CHUNK:
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(matches, jobs))
    else:
        results = [matches(job) for job in jobs]
    for (name, start, piece, _), good in zip(jobs, results, strict=True):
        if not good:
            raise ArtifactError(
                f"{path} is damaged: the sha256 of bytes {start} to {start + len(piece)} of its "
                f"section {name!r} does not match; copy it again"
            )
