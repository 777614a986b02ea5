"""Imports go down the stairs, never up: `FLOORS` is the one place that says what stands on what."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = (
    "errors", "wording", "version", "progress", "explain", "linking", "quiet", "units", "pages",
    "images", "sparsity", "runtime", "layer_facts", "tables", "model_files", "cache",
    "kernels", "kernels.cuda", "kernels.avx512", "kernels.avx512.sliding", "kernels.avx512.panel",
    "kernels.avx512.lanes", "kernels.avx512.recurrent", "kernels.avx512.winograd",
    "kernels.avx512.contest", "kernels.avx512_vnni",
    "kernels.avx512_bf16", "kernels.avx512_amx", "kernels.sparse_tensor_core",
    "kernels.catalog", "targets", "machine",
    "passes.graphs", "passes.permutation", "passes.removal", "passes", "passes.operators",
    "passes.lowering", "frontends", "folding", "layer_names", "quantization", "train", "devices",
    "tuning", "backends", "segments", "reports", "inspection", "spatial", "shape_sets", "precision",
    "recorded", "building", "assembly", "compiler", "updating", "dynamo", "bundle", "bench",
    "viewer", "cli", "__main__", "",
)  # fmt: skip
"""Rooms of the package, the lowest first; a module is in the room with the longest matching name.
The last is the package's face. CONTRIBUTING.md quotes this."""


def read_modules(root: Path) -> dict[str, str]:
    """The source of every module, by its dotted name without the package's."""
    found = {}
    for top, prefix in (("nmcompile", ()), ("passes", ("passes",)), ("runtime", ("runtime",))):
        for path in (root / top).rglob("*.py"):  # rglob does not follow the links
            parts = (*prefix, *path.relative_to(root / top).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return found


@functools.cache
def imported_names(source: str) -> tuple[str, ...]:
    """What a source imports of the package, for types and inside functions too."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    split = (name.partition(".") for name in names)
    return tuple(inner for package, _, inner in split if package == "nmcompile")


def imported(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules that a source imports."""
    for inner in imported_names(source):
        # `from package import name` is the module of that name if there is one.
        yield inner if inner in modules else inner.rpartition(".")[0]


def floor_of(module: str) -> int:
    rooms = [room for room in FLOORS if f"{module}.".startswith(f"{room}." if room else "")]
    # bundle/package.py and bench/engines/*_worker.py included: no module has a floor of its own.
    assert rooms != [""] or module == "", f"{module} stands on no floor: add it to FLOORS"
    return FLOORS.index(max(rooms, key=len))


def upward(modules: Mapping[str, str]) -> list[str]:
    """Imports that go up, and circles of imports on one floor."""
    found, edges = [], {}
    for module, source in modules.items():
        edges[module] = set(imported(source, modules)) - {module}
        found += [
            f"{module or 'the face'} imports {other or 'the face'}"
            for other in sorted(edges[module])
            if floor_of(other) > floor_of(module)
        ]
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' <- '.join(error.args[1])}")
    return found


def test_no_import_goes_up() -> None:
    assert upward(read_modules(ROOT)) == []


@pytest.mark.parametrize(
    ("module", "planted", "found"),
    [
        ("sparsity.check", "from nmcompile.kernels import catalog", "imports kernels.catalog"),
        ("runtime.files", "def late():\n    import nmcompile", "imports the face"),
        ("kernels.spec", "import nmcompile.kernels.avx512.emit", "imports kernels.avx512.emit"),
        ("sparsity.pattern", "from nmcompile.sparsity.project import project", "a circle: "),
    ],
)
def test_an_import_that_goes_up_is_found(module: str, planted: str, found: str) -> None:
    modules = read_modules(ROOT)
    modules[module] += f"\n{planted}\n"
    assert any(found in text for text in upward(modules))


def test_contributing_quotes_the_floors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    quoted = re.search(r"```\n(errors <- .*?)\n```", text, re.DOTALL)
    assert quoted is not None
    rooms = [room.strip() for room in re.split(r"<-|,", quoted[1].replace("\n", " "))]
    assert rooms == [room or "nmcompile" for room in FLOORS]


def test_plain_tests_need_no_compiler() -> None:
    code = (
        "import sys, pytest; sys.modules['tvm'] = None; "
        "sys.exit(pytest.main(['tests/plain', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
