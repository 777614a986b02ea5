"""What a kit holds: machine code of layers by tile variant, and libraries of whole models.

    bench_gpu.py, benchmarks/gpu/   this benchmark
    nmcompile/, tvm_ffi/            what of nmcompile and TVM's runtime it imports
    sm_80.zip, sm_90a.zip           index.json, and what it names: cubins, libraries, references

No weights travel: random numbers do not shrink, and each artifact of a ResNet-50 has 30 MB of them.
They are drawn from a seed and packed on the spot, by nmcompile's own numpy code; the index says in
which form each kernel reads them, and has the digest of every array that `nmc compile` wrote.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nmcompile.errors import ArtifactError
from nmcompile.kernels.sparse_tensor_core.tiles import Gemm, Method, TileConfig
from nmcompile.kernels.spec import Conv2d

INDEX = "index.json"


@dataclass(frozen=True)
class Launch:
    """As `nmcompile.kernels.cuda.build.Launch`, which imports TVM."""

    kernel: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class Variant:
    """One kernel with one choice of tiles for a layer.

    cycles: counted by the analytical model. rank: place among the variants of its method, by these;
        chosen: what `nmc compile` takes for the layer.
    """

    method: Method
    config: TileConfig
    cycles: float
    rank: int
    chosen: bool
    cubin: str
    registers: int
    launches: tuple[Launch, ...]

    @property
    def name(self) -> str:
        """Method and tiles."""
        config = self.config
        warps = f"{config.warps[0]}x{config.warps[1]}"
        split = f" /{config.splits}" if config.splits > 1 else ""
        return f"{self.method} {config.channels}x{config.pixels} {warps}{split}"


@dataclass(frozen=True)
class Layer:
    """A convolution with bias and ReLU; count: how often the network has it."""

    conv: Conv2d
    count: int
    pattern: str
    seed: int
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """The shape and the batch, as tables name it."""
        conv = self.conv
        size, stride = conv.kernel[0], conv.stride[0]
        return (
            f"{conv.in_channels}->{conv.out_channels} {size}x{size}/{stride} {conv.in_height}² "
            f"b{conv.batch}"
        )

    def gemm(self, variant: Variant) -> Gemm:
        """The convolution cut into a variant's tiles."""
        return Gemm(self.conv, variant.config, variant.method)


@dataclass(frozen=True)
class Recipe:
    """One array of an artifact: layer `index`'s weight or bias as a kernel reads it.

    digest: sha256 of the array that the compiler wrote, for the model's own pattern.
    """

    name: str
    index: int
    kind: str
    conv: Conv2d
    config: TileConfig
    method: Method
    digest: str


@dataclass(frozen=True)
class Model:
    """A ResNet-50 for one batch.

    library, manifest: members of the zip. references: the logits by pattern, float32.
    """

    batch: int
    pattern: str
    library: str
    manifest: str
    recipes: tuple[Recipe, ...]
    references: Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """The index of one architecture."""

    arch: str
    nmcompile: str
    layers: tuple[Layer, ...]
    models: tuple[Model, ...]


class Kit:
    """The part of a kit for one architecture, opened to read."""

    def __init__(self, folder: Path, arch: str) -> None:
        """Open it.

        Raises:
            ArtifactError: the kit has nothing for this architecture, or is damaged.
        """
        path = folder / f"{arch}.zip"
        if not path.is_file():
            found = ", ".join(sorted(file.stem for file in folder.glob("sm_*.zip"))) or "none"
            raise ArtifactError(
                f"{folder} has no kernels for {arch}, only for {found}: run `make gpu-kit "
                f"GPU={arch}` where the repository is, and copy the folder out/gpu-kit here"
            )
        try:
            self._zip = zipfile.ZipFile(path)
            self.contents = load(self._zip.read(INDEX))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"{path} cannot be read ({error}); copy the whole kit anew"
            ) from error

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        return self._zip.read(member)


def dump(contents: Contents) -> bytes:
    """As the member `INDEX`."""
    return json.dumps(asdict(contents), separators=(",", ":")).encode()


def load(data: bytes) -> Contents:
    """The inverse of `dump`."""
    document = json.loads(data)
    return Contents(
        document["arch"],
        document["nmcompile"],
        tuple(_layer(entry) for entry in document["layers"]),
        tuple(_model(entry) for entry in document["models"]),
    )


def _layer(entry: Mapping[str, Any]) -> Layer:
    variants = tuple(_variant(each) for each in entry["variants"])
    return Layer(**{**entry, "conv": _conv(entry["conv"]), "variants": variants})


def _variant(entry: Mapping[str, Any]) -> Variant:
    launches = tuple(Launch(**_tuples(each)) for each in entry["launches"])
    return Variant(**{**entry, "config": _config(entry["config"]), "launches": launches})


def _model(entry: Mapping[str, Any]) -> Model:
    recipes = tuple(
        Recipe(**{**each, "conv": _conv(each["conv"]), "config": _config(each["config"])})
        for each in entry["recipes"]
    )
    return Model(**{**entry, "recipes": recipes})


def _conv(entry: Mapping[str, Any]) -> Conv2d:
    return Conv2d(**_tuples(entry))


def _config(entry: Mapping[str, Any]) -> TileConfig:
    return TileConfig(**_tuples(entry))


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}


def with_pattern(layer: Layer, pattern: str) -> Layer:
    """The same kernels for weights of another pattern, which holds 2:4 too."""
    return replace(layer, pattern=pattern)
