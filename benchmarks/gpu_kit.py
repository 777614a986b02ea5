"""Writes the kit: one folder that `bench_gpu.py` runs in, on a machine with a GPU and no network.

    python -m benchmarks.gpu_kit --gpu sm_80,sm_90a --output out/gpu-kit

It needs nvcc, and no GPU. Machine code and libraries travel, weights do not: see
`benchmarks/gpu/contents.py`. Each GPU's part is a file, and a machine needs only its own.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

import nmcompile
from benchmarks.gpu import contents
from benchmarks.gpu.contents import Contents, Layer
from benchmarks.gpu_kit_layers import (
    Add,
    Compiler,
    CubinCache,
    Measured,
    Shapes,
    make_layers,
)
from benchmarks.gpu_kit_models import make_model
from benchmarks.shapes import read_shapes
from nmcompile.bundle import write_bundle
from nmcompile.errors import NmcompileError, TargetError
from nmcompile.kernels.cuda.build import find_nvcc

HERE = Path(__file__).parent
ARCHITECTURES = ("sm_80", "sm_90a")
BATCHES = (64, 16, 1)
LIMIT = 60_000_000  # bytes of the whole folder
KEPT = ("results", "cache")  # what bench_gpu.py writes
PATTERNS_BATCH = 16  # of the model that also runs sparser patterns


def write_kit(
    output: Path,
    architectures: Sequence[str] = ARCHITECTURES,
    batches: Sequence[int] = BATCHES,
    shapes: Shapes | None = None,
    models: bool = True,
    pythons: Sequence[str] = (),
    compiler: Compiler | None = None,
    measured: Measured | None = None,
) -> int:
    """Write a kit and return its size in bytes.

    Args:
        output: the folder; an older kit in it is replaced.
        architectures: of GPUs.
        batches: of layers and models.
        shapes: of the layers; ResNet-50's by default.
        models: whether whole models go along.
        pythons: versions of CPython, such as "3.12", that the kit also runs under, besides this
            one; what they need comes from PyPI.
        compiler: of the layers' kernels; nvcc by default.
        measured: tile variants of a layer by method; by default as in `MEASURED`.

    Raises:
        NmcompileError: nvcc is missing, something cannot be compiled, or the kit is too large.
    """
    if compiler is None or models:
        find_nvcc()
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as scratch:
        folder = Path(scratch, "kit")
        write_bundle([], folder, pythons=pythons, gpu=True)
        _copy_bench(folder)
        compiler = compiler or CubinCache(Path(scratch, "cubins"))
        shapes = read_shapes("resnet50") if shapes is None else shapes
        for arch in architectures:

            def layers(add: Add, arch: str = arch) -> tuple[Layer, ...]:
                return make_layers(arch, batches, shapes, compiler, add, _shown, measured)

            _write_part(folder, arch, layers, batches if models else ())
        nbytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if nbytes > LIMIT:
            raise TargetError(
                f"the kit has {nbytes} bytes, over the {LIMIT} that it may have: make one for a "
                "single architecture, as GPU=sm_90a"
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        _replace(output, folder)
    return nbytes


def _replace(output: Path, folder: Path) -> None:
    """Put a new kit where there may be an older one, whose results stay.

    Raises:
        TargetError: there is something else.
    """
    found = list(output.iterdir()) if output.is_dir() else []
    if found and not (output / "bench_gpu.py").exists():
        raise TargetError(
            f"{output} holds something else than a kit (no bench_gpu.py), which stays; name a new "
            "folder"
        )
    for path in found:
        if path.is_dir() and path.name not in KEPT:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    shutil.copytree(folder, output, dirs_exist_ok=True)


def _copy_bench(folder: Path) -> None:
    """This benchmark, and what it imports of this repository besides the runtime."""
    shutil.copy(HERE / "bench_gpu.py", folder)
    for name, file in _imported([f"benchmarks.gpu.{f.stem}" for f in HERE.glob("gpu/[a-z]*.py")]):
        target = folder.joinpath(*name.split("."))
        target = target / "__init__.py" if file.name == "__init__.py" else target.with_suffix(".py")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _imported(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The modules of this repository that these import, directly or not, and their files."""
    queue, seen = list(names), set()
    while queue:
        name = queue.pop()
        file = _file_of(name)
        # The compiler's own `nmcompile` stays here: the bundle brings one of its own.
        if name in seen or file is None or name == "nmcompile":
            continue
        seen.add(name)
        yield name, file
        queue.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def _file_of(name: str) -> Path | None:
    """The file of a module of this repository; None for others and for what is no module."""
    top, *rest = name.split(".")
    roots = {"benchmarks": HERE, "nmcompile": Path(nmcompile.__file__).parent}
    if top not in roots:
        return None
    path = roots[top].joinpath(*rest)
    found = [path / "__init__.py", path.with_suffix(".py")]
    return next((file for file in found if file.is_file()), None)


def _write_part(
    folder: Path, arch: str, layers: Callable[[Add], tuple[Layer, ...]], batches: Sequence[int]
) -> None:
    """The kernels of layers, and the libraries and references of models, of one architecture."""
    with zipfile.ZipFile(
        folder / f"{arch}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as archive:

        def add(name: str, content: bytes) -> None:
            if name not in archive.NameToInfo:
                # A date would make equal kits differ.
                entry = zipfile.ZipInfo(name)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content, compresslevel=9)

        built = tuple(
            make_model(arch, batch, batch == PATTERNS_BATCH, add)
            for batch in _shown(batches, f"{arch}: models")
        )
        index = Contents(arch, nmcompile.__version__, layers(add), built)
        add(contents.INDEX, contents.dump(index))


def _shown(items: Sequence[Any], title: str) -> Iterable[Any]:
    return track(items, title, console=Console(stderr=True))


def main() -> int:
    """Write a kit."""
    parser = argparse.ArgumentParser(prog="gpu_kit", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/gpu-kit"))
    parser.add_argument("--gpu", default=",".join(ARCHITECTURES))
    parser.add_argument("--python", default="3.12", help="more versions that it is to run under")
    parser.add_argument("--cache", type=Path, default=Path("out/gpu-cubins"))
    options = parser.parse_args()
    architectures = options.gpu.split(",")
    unknown = set(architectures) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"--gpu: expected some of {', '.join(ARCHITECTURES)}, found {unknown.pop()!r}")
    try:
        nbytes = write_kit(
            options.output,
            architectures,
            pythons=tuple(filter(None, options.python.split(","))),
            compiler=CubinCache(options.cache),
        )
    except NmcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.output}: {nbytes / 1e6:.1f} MB. Copy it to a machine with a GPU and run "
        "`python bench_gpu.py` there."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
