"""What the wheel holds, and what importing it drags in."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER_ONLY = {"torch", "tvm", "onnx", "nmcompile.graph", "nmcompile.passes"}


def packages_on_disk() -> set[str]:
    found = set()
    for top, prefix in (("nmcompile", ""), ("passes", "nmcompile."), ("runtime", "nmcompile.")):
        for init in (ROOT / top).rglob("__init__.py"):  # rglob does not follow the links
            found.add(prefix + ".".join(init.parent.relative_to(ROOT).parts))
    return found


def test_every_package_is_listed() -> None:
    # setuptools leaves an unlisted package out of the wheel without a word.
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(config["tool"]["setuptools"]["packages"]) == packages_on_disk()


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_top_level_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=f"import nmcompile.{name}"):
        importlib.import_module(name)


def test_runtime_imports_no_compiler() -> None:
    code = "import sys, nmcompile.runtime; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not COMPILER_ONLY & set(modules)
